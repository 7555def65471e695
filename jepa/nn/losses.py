"""Terms that keep codes apart, and norms of targets.

Axes: b images, r rows of targets, n patches of a target, d width, s slices, t points of a curve.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.distributed.nn.functional import all_gather

from jepa.nn.checks import check_choice, check_range
from jepa.nn.ema import Teacher
from jepa.nn.masking import stream

N_KNOTS = 17  # points at which characteristic functions are compared, in [0, LAST_KNOT]
LAST_KNOT = 3.0
NORMS = ("layer", "batch", "none")


def n_ranks() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def across_ranks(x: Float[Tensor, "b d"]) -> Float[Tensor, "m d"]:
    """Join the rows of all processes; the gradient goes back to the process a row came from.

    Every process needs the same number of rows.
    """
    return torch.cat(list(all_gather(x))) if n_ranks() > 1 else x


def batch_norm(x: Float[Tensor, "r n d"], *, synchronise: bool) -> Float[Tensor, "r n d"]:
    """Give each dimension mean 0 and variance 1 over all patches of the batch.

    Args:
        x: of equal shape in all processes where these are synchronised; takes no gradient then.
        synchronise: over the batches of all processes.
    """
    ranks = n_ranks() if synchronise else 1
    mean = x.mean((0, 1))
    if ranks > 1:
        dist.all_reduce(mean)
        mean = mean / ranks
    centred = x - mean
    variance = centred.square().mean((0, 1))
    if ranks > 1:
        dist.all_reduce(variance)
        variance = variance / ranks
    return centred * torch.rsqrt(variance + 1e-5)


def normalize(
    x: Float[Tensor, "r n d"], norm: str, *, synchronise: bool = False
) -> Float[Tensor, "r n d"]:
    """Normalise targets, in float32: each patch (`layer`), each dimension (`batch`), or `none`."""
    check_choice("model.target_norm", norm, NORMS)
    x = x.float()
    if norm == "layer":
        return F.layer_norm(x, x.shape[-1:])
    return batch_norm(x, synchronise=synchronise) if norm == "batch" else x


def variance_loss(x: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Ask of every dimension a standard deviation of at least 1.

    The variance term of Bardes et al., "VICReg", ICLR 2022, arXiv:2105.04906.
    """
    return F.relu(1 - (x.var(0) + 1e-4).sqrt()).mean()


def covariance_loss(x: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Ask of every two dimensions that they do not vary together (VICReg's covariance term)."""
    centred = x - x.mean(0)
    covariance = centred.T @ centred / (len(x) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / x.shape[1]


def nt_xent(
    x: Float[Tensor, "b d"], y: Float[Tensor, "b d"], temperature: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Find each row's partner among all rows of both; also return the share of `x` that does.

    Chen et al., "SimCLR", ICML 2020, arXiv:2002.05709: the partners are the only positives, and no
    row is compared with itself.
    """
    n = len(x)
    codes = F.normalize(torch.cat([x, y]).float(), dim=1)
    scores = codes @ codes.T / temperature
    scores = scores.masked_fill(torch.eye(2 * n, dtype=torch.bool, device=x.device), -torch.inf)
    partner = torch.arange(2 * n, device=x.device).roll(n)
    found = (scores[:n].argmax(1) == partner[:n]).float().mean()
    return F.cross_entropy(scores, partner), found


def slices(
    width: int, n_slices: int, *, generator: Generator | None = None
) -> Float[Tensor, "d s"]:
    """Draw directions, uniform on the sphere."""
    device = generator.device if generator is not None else None
    return F.normalize(torch.randn(width, n_slices, generator=generator, device=device), dim=0)


def sigreg(x: Float[Tensor, "b d"], directions: Float[Tensor, "d s"]) -> Float[Tensor, ""]:
    """Ask of codes that they be distributed as a standard normal, seen along every direction.

    Balestriero and LeCun, "LeJEPA", 2025, arXiv:2511.08544: the Epps-Pulley statistic, the squared
    distance of the empirical characteristic function to that of N(0, 1) under the weight
    exp(-t^2 / 2), times the number of rows, averaged over directions. Codes are not standardised
    before: the scale is what it has to see.
    """
    t = torch.linspace(0, LAST_KNOT, N_KNOTS, device=x.device)
    angle = (x.float() @ directions)[..., None] * t
    normal = torch.exp(-t.square() / 2)
    distance = (angle.cos().mean(0) - normal).square() + angle.sin().mean(0).square()
    # the integrand is even: twice the half over which it is taken
    return 2 * len(x) * torch.trapezoid(distance * normal, t, dim=-1).mean()


class CodeTerms(nn.Module):
    """Terms on one code for each image: the student's, and the teacher's of the same image.

    Codes are projected before, the teacher's by a slow copy of the projector. Without a term there
    is no projector.

    Args:
        width: of the codes.
        projector_width: of the projected codes.
        weights: of `vicreg_variance`, `vicreg_covariance`, `vicreg_invariance`, `nt_xent` and
            `sigreg`; 0 leaves a term out.
        temperature: of `nt_xent`.
        n_slices: directions of `sigreg`.

    Raises:
        ValueError: if a setting is out of its range.
    """

    def __init__(
        self,
        width: int,
        *,
        projector_width: int,
        weights: dict[str, float],
        temperature: float,
        n_slices: int,
    ):
        super().__init__()
        for name, weight in weights.items():
            check_range(f"model.{name}", weight, low=0)
        for name, value in (("projector_width", projector_width), ("n_slices", n_slices)):
            check_range(f"model.{name}", value, low=1)
        if temperature <= 0:
            raise ValueError(f"model.nt_xent_temperature must be above 0, got {temperature}")
        self.weights = {name: float(weight) for name, weight in weights.items() if weight}
        self.temperature, self.n_slices = temperature, n_slices
        self.projector = self.slow_projector = None
        if self.weights:
            self.projector = nn.Sequential(
                nn.Linear(width, projector_width),
                nn.GELU(),
                nn.Linear(projector_width, projector_width),
            )
            self.slow_projector = Teacher(self.projector)

    @property
    def compares(self) -> bool:
        """Tell whether a term reads the teacher's codes."""
        return bool({"vicreg_invariance", "nt_xent"} & self.weights.keys())

    def trained(self) -> list[nn.Module]:
        """Return the networks that the optimizer trains."""
        return [] if self.projector is None else [self.projector]

    def update(self, momentum: float) -> None:
        """Move the slow copy of the projector."""
        if self.projector is not None and self.slow_projector is not None:
            self.slow_projector.update(self.projector, momentum)

    def forward(
        self,
        codes: Float[Tensor, "b d"],
        targets: Float[Tensor, "b d"],
        key: tuple[int | str, ...],
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the weighted sum and each term, over the images of all processes.

        `key` decides the directions of `sigreg`, the same in all processes.
        """
        assert self.projector is not None and self.slow_projector is not None
        with torch.autocast(codes.device.type, enabled=False):
            x = across_ranks(self.projector(codes.float()))
            y = across_ranks(self.slow_projector(targets.float()))
            values = self._values(x, y, key)
        total = torch.stack([w * values[name] for name, w in self.weights.items()]).sum()
        return total, values

    def _values(
        self, x: Float[Tensor, "m d"], y: Float[Tensor, "m d"], key: tuple[int | str, ...]
    ) -> dict[str, Tensor]:
        """Return the terms that have a weight, and how often the contrastive one is right."""
        values: dict[str, Tensor] = {}
        if "vicreg_variance" in self.weights:
            values["vicreg_variance"] = variance_loss(x)
        if "vicreg_covariance" in self.weights:
            values["vicreg_covariance"] = covariance_loss(x)
        if "vicreg_invariance" in self.weights:
            values["vicreg_invariance"] = F.mse_loss(x, y)
        if "nt_xent" in self.weights:
            values["nt_xent"], values["nt_xent_accuracy"] = nt_xent(x, y, self.temperature)
        if "sigreg" in self.weights:
            generator = Generator(x.device).manual_seed(stream("slices", *key))
            values["sigreg"] = sigreg(x, slices(x.shape[1], self.n_slices, generator=generator))
        return values
