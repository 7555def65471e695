"""`data=imagenet100`: a hundred of ImageNet's classes, from a folder that you have."""

from jepa.data.imagenet import ImageNet


class ImageNet100(ImageNet):
    """See `ImageNet`, whose settings it has."""
