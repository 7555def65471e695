"""`data=imagenet1k`: all thousand classes of ImageNet, from a folder that you have."""

from jepa.data.imagenet import ImageNet


class ImageNet1K(ImageNet):
    """See `ImageNet`, whose settings it has."""
