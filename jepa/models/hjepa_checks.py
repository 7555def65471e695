"""What H-JEPA asks of its data."""

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
