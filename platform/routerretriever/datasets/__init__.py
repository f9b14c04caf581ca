"""Retrieval collections: BEIR folders, read, checked, split and downloaded.

``open_collection`` gives a ``Collection`` to read; ``check_collection`` lists what is wrong with a folder;
``download`` and ``write_split`` make new folders. Holding queries out is a pure function of their ids.
"""

from routerretriever.datasets.checking import CheckReport, Defect, check_collection
from routerretriever.datasets.collection import (
    BEIR_NAMES,
    SPLITS,
    Collection,
    Document,
    open_collection,
    sample_domains,
)
from routerretriever.datasets.download import download, write_split
from routerretriever.datasets.judgements import (
    Judgements,
    judgements_key,
    load_judgements,
    store_judgements,
)
from routerretriever.datasets.reading import DatasetError
from routerretriever.datasets.splitting import hold_out, split_train

__all__ = [
    "BEIR_NAMES",
    "SPLITS",
    "CheckReport",
    "Collection",
    "DatasetError",
    "Defect",
    "Document",
    "Judgements",
    "check_collection",
    "download",
    "hold_out",
    "judgements_key",
    "load_judgements",
    "open_collection",
    "sample_domains",
    "split_train",
    "store_judgements",
    "write_split",
]
