"""The four ETT sets: two transformers, by the hour and by the quarter of an hour.

Electricity Transformer Temperature, Zhou et al., "Informer", arXiv:2012.07436, Sec. 5.1: oil
temperature (OT) and six loads, July 2016 to June 2018. CC BY-ND 4.0.
"""

from jepa.data.series_card import SeriesCard

_URL = (
    "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/"
    "1d16c8f4f943005d613b5bc962e9eeb06058cf07/ETT-small/"
)


def ett_card(name: str, *, rows: int, sha256: str) -> SeriesCard:
    """Describe one of the four files."""
    return SeriesCard(
        place=f"ett/{name}.csv",
        source="github.com/zhouhaoyi/ETDataset, ETT-small",
        rows=rows,
        channels=7,
        sha256=sha256,
        url=f"{_URL}{name}.csv",
    )
