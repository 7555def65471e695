"""Models that collapse, for the tests of the watch: each lacks what keeps its codes apart."""

import torch.nn.functional as F

from jepa.models.hjepa import HJEPA
from jepa.models.tjepa import TJEPA
from jepa.nn.levels import Levels


class LiveTargets(HJEPA):
    """No slow copy and no stop of the gradient: the student is trained to be easy to predict."""

    def _teach(self, x):
        return [self.encoder(x)]

    def _errors(self, context, hidden, blocks):
        features = self.predictor(context, blocks.context, blocks.targets).flatten(0, 1)
        predicted = self.pyramid(features, blocks.shape)
        targets = Levels.targets.__wrapped__(self.levels, hidden, blocks, synchronise=False)
        return [self.distance(p, t) for p, t in zip(predicted, targets, strict=True)]


class NoPredictor(HJEPA):
    """The mean code of the context is itself the prediction, at every place."""

    def _errors(self, context, hidden, blocks):
        targets = self.levels.targets(hidden, blocks, synchronise=False)
        code = context.mean(1).repeat_interleave(blocks.targets.shape[1], dim=0)[:, None]
        return [self.distance(code.expand_as(t), t) for t in targets]


class LiveColumns(TJEPA):
    """As `LiveTargets`, for the columns of a table."""

    def _targets(self, x, masks):
        codes = self.encoder(x, only=masks.hidden)
        return F.layer_norm(codes, codes.shape[-1:])[:, masks.slots]
