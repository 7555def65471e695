"""The place of a run in its epochs, in the form in which Lightning's loops go on from it exactly.

Lightning notes different counters in each hook that may save, and some of them make it count a cut
epoch as a whole one. Here every checkpoint says the same: so many epochs are complete, so many
batches of the next one are done.
"""

from dataclasses import dataclass
from typing import Any, cast

import lightning as L


@dataclass(frozen=True)
class Place:
    """Whole epochs, batches of the next one, and whether a validation is to follow them."""

    epoch: int
    batch: int
    validate: bool = False


def n_done(trainer: L.Trainer) -> int:
    """Return how many batches of this epoch have been trained on."""
    return cast(Any, trainer.fit_loop.epoch_loop.batch_progress.current).processed


def validation_due(trainer: L.Trainer) -> bool:
    """Tell whether the schedule has a validation after the newest batch."""
    every = trainer.check_val_every_n_epoch
    is_epoch = every is None or (trainer.current_epoch + 1) % every == 0
    limit = trainer.val_check_batch
    return bool(trainer.enable_validation and is_epoch and limit and n_done(trainer) % limit == 0)


def place_of(trainer: L.Trainer, *, validated: bool) -> Place:
    """Return where the run stands, from any hook between two batches.

    Args:
        trainer: fitting.
        validated: whether the validation after the newest batch is done.
    """
    batch, epoch = n_done(trainer), trainer.current_epoch
    if batch < trainer.num_training_batches:
        return Place(epoch, batch)
    if validation_due(trainer) and not validated:
        return Place(epoch, batch, validate=True)
    return Place(epoch + 1, 0)


def at_boundary(trainer: L.Trainer) -> bool:
    """Tell whether no gradient waits for the rest of its accumulation group."""
    return n_done(trainer) % trainer.accumulate_grad_batches == 0


def write_place(checkpoint: dict[str, Any], place: Place) -> None:
    """Put the place into a checkpoint's loop state."""
    state = checkpoint["loops"]["fit_loop"]
    epochs = place.epoch + (place.batch > 0)
    for count in state["epoch_progress"].values():
        count |= {"ready": epochs, "started": epochs}
        count |= {"processed": place.epoch, "completed": place.epoch}
    batches = state["epoch_loop.batch_progress"]
    n_before = batches["total"]["processed"] - batches["current"]["processed"]
    if place.batch == 0:
        n_before = batches["total"]["processed"]
    for name, count in (("total", n_before + place.batch), ("current", place.batch)):
        batches[name] = dict.fromkeys(batches[name], count)
    batches["is_last_batch"] = place.validate
    # the count that loggers go by moves on after a validation
    steps = checkpoint["global_step"] - place.validate
    state["epoch_loop.state_dict"]["_batches_that_stepped"] = steps
    for loader in state["state_dict"].get("combined_loader", ()):
        loader |= {"epoch": place.epoch, "position": place.batch}
    checkpoint["epoch"] = place.epoch
    checkpoint["place"] = {
        "epoch": place.epoch,
        "batch": place.batch,
        "validate": place.validate,
    }


def write_group(checkpoint: dict[str, Any], trainer: L.Trainer) -> None:
    """Put into a checkpoint what its counts of batches are counts of."""
    rows = getattr(cast(Any, trainer).datamodule, "batch_size", None)
    checkpoint["group"] = {"rows": rows, "batches": trainer.accumulate_grad_batches}


def recount(checkpoint: dict[str, Any], trainer: L.Trainer) -> None:
    """Count in the micro-batches of this run, where it makes the same steps of smaller ones.

    Checkpoints lie between steps, so that the new counts are whole numbers. The loaders see
    to themselves: they count in rows.
    """
    before, now = checkpoint.get("group"), dict[str, Any]()
    write_group(now, trainer)
    if before is None or before == now["group"] or None in before.values():
        return
    old, new = before["batches"], now["group"]["batches"]
    if before["rows"] * old != now["group"]["rows"] * new:
        return  # another effective batch is another run
    state, place = checkpoint["loops"]["fit_loop"], checkpoint["place"]
    place["batch"] = place["batch"] * new // old
    batches = state["epoch_loop.batch_progress"]
    for name in ("total", "current"):
        batches[name] = {key: n * new // old for key, n in batches[name].items()}


def enter(trainer: L.Trainer, place: Place) -> None:
    """Make the loops of a restored trainer go on from the place, once they are running."""
    loop = trainer.fit_loop
    if place.batch and not place.validate:
        # Lightning goes on inside the epoch by itself, but when the schedules asked for the number
        # of steps, the loader was built before there was a state to give it
        loop._load_combined_loader_states()
        return
    loop.epoch_loop.restarting = False  # else it would count the old epoch's batches as the next's
    if place.validate:
        validate(trainer)
        loop.epoch_loop._batches_that_stepped += 1
        loop.epoch_progress.increment_processed()
        loop.epoch_progress.increment_completed()
        loop.reset_restart_stage()


def validate(trainer: L.Trainer) -> None:
    """Run a validation of its own, inside the fit but outside its schedule."""
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True


def off_schedule(trainer: L.Trainer) -> bool:
    """Tell whether a validation is an extra one, of a run that stops where it is to go on later.

    It is for the report alone: a run that was never stopped does not have it.
    """
    callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    return any(getattr(callback, "held", None) is not None for callback in callbacks)
