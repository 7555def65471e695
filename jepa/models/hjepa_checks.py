"""What H-JEPA asks of its data."""

from jepa.nn.checks import check_range
from jepa.spec import ImageSpec


def check_spec(spec: object) -> None:
    """Refuse data of another kind.

    Raises:
        ValueError: then.
    """
    if not isinstance(spec, ImageSpec):
        raise ValueError(
            f"model=hjepa takes images, but this data describes itself by {type(spec).__name__}: "
            "give images, for example data=digits, or a model for such data"
        )


def check_views(spec: ImageSpec, *, second_view: bool, compares: bool) -> None:
    """Refuse a second view that nothing reads, and a reader without one.

    Raises:
        ValueError: naming the setting to change.
    """
    if second_view and not compares:
        raise ValueError(
            "model.second_view=true is read by the terms that compare two codes: set "
            "model.nt_xent or model.vicreg_invariance above 0, or model.second_view=false"
        )
    if second_view and not spec.two_views:
        raise ValueError(
            "model.second_view=true, but the batches hold one view of an image: set "
            "data.two_views=true, or model.second_view=false"
        )
    if spec.two_views and not second_view:
        raise ValueError(
            "data.two_views=true, but the model reads one view: set model.second_view=true with "
            "model.nt_xent or model.vicreg_invariance above 0, or data.two_views=false"
        )


def check_local(spec: ImageSpec, *, local_weight: float, compares: bool, patch: int) -> None:
    """Refuse small crops that nothing reads or no patches cover, and a reader without them.

    Raises:
        ValueError: naming the setting to change.
    """
    check_range("model.local_weight", local_weight, low=0)
    if local_weight and not compares:
        raise ValueError(
            f"model.local_weight={local_weight} weighs the terms that compare two codes: set "
            "model.nt_xent or model.vicreg_invariance above 0, or model.local_weight=0"
        )
    if bool(local_weight) != bool(spec.n_local_views):
        raise ValueError(
            f"model.local_weight={local_weight}, but the batches hold data.n_local_views="
            f"{spec.n_local_views} local views: set both above 0, or both to 0"
        )
    if spec.n_local_views and spec.local_size % patch:
        raise ValueError(
            f"data.local_size={spec.local_size} must be a multiple of model.patch={patch}"
        )
