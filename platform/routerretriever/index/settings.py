"""How documents are searched: by vectors, by words."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from routerretriever.corpus.settings import CorpusSettings
from routerretriever.encoder.spread import LEAST_COSINE, DocumentEncoder, cosine_floor, spread_of
from routerretriever.settings import Fraction, Settings
from routerretriever.types import Language

_Candidates = Annotated[int, Field(gt=0, le=1_000_000)]


class LexicalSettings(Settings):
    """BM25 over words."""

    language: Language = "english"
    """Whose stemmer is used. ``none`` stems nothing; ``code`` also counts the parts of identifiers."""
    stop_words: bool = True
    """Leave out words without content, where a list of the language's is known."""
    k1: Annotated[float, Field(ge=0, le=1000)] = 0.9  # above, a word counts as often as it stands there
    """How much repeated words count."""
    b: Annotated[float, Field(ge=0.0, le=1.0)] = 0.4
    """How much long documents are marked down."""


class FusionSettings(Settings):
    """How the weight of BM25 is found for each query."""

    prior: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """The weight where none was learned."""
    shrinkage: NonNegativeFloat = 50.0
    """The number of queries at which half of a domain's gain counts."""
    caution: NonNegativeFloat = 0.05
    """The gain in nDCG@10 that moving the weight by 1 must bring."""
    poor: Fraction = 0.5
    """Where BM25 alone reaches at most this share of the vectors' nDCG@10, a domain's weight starts at 0."""
    useful: PositiveFloat = 0.75
    """Where it reaches this share, the weight starts at the prior; between the two, in between."""
    cosine_floor: Annotated[float, Field(ge=LEAST_COSINE, lt=1.0)] | None = None
    """The cosine that counts as no likeness at all; by default by how alike the encoder finds unrelated
    texts, and -1 where these are far apart."""

    def for_encoder(self, encoder: DocumentEncoder) -> FusionSettings:
        """The same with the encoder's floor, unless one is set."""
        if self.cosine_floor is not None:
            return self
        return self.model_copy(update={"cosine_floor": cosine_floor(spread_of(encoder))})

    @property
    def floor(self) -> float:
        """The floor; -1 where it is not known, as in bundles of earlier releases."""
        return LEAST_COSINE if self.cosine_floor is None else self.cosine_floor

    @model_validator(mode="after")
    def _poor_is_below_useful(self) -> Self:
        if self.poor >= self.useful:
            raise ValueError(f"poor: {self.poor} is not below useful: {self.useful}; make it smaller")
        return self


class IndexSettings(Settings):
    """FAISS index of a corpus. ``exact`` is a flat inner-product index."""

    kind: Literal["exact", "ivf", "hnsw"] = "exact"
    """``exact`` compares with every document; ``ivf`` and ``hnsw`` are approximate and faster."""
    ivf_lists: PositiveInt | None = None
    """Number of inverted lists; by default about 4 * sqrt(documents)."""
    ivf_probes: PositiveInt = 32
    """IVF: inverted lists searched for each query."""
    hnsw_links: Annotated[int, Field(ge=2, le=1024)] = 32  # of a single link FAISS crashes the process
    """HNSW: links of each document (M)."""
    hnsw_ef_construction: _Candidates = 200
    """HNSW: candidates kept while the graph is built."""
    hnsw_ef_search: _Candidates = 128
    """HNSW: candidates kept while it is searched."""


class CollectionSettings(CorpusSettings):
    """How documents are encoded and searched."""

    index: IndexSettings = IndexSettings()
    """Index that searches the documents' vectors."""
    lexical: LexicalSettings | None = LexicalSettings()
    """Index that searches the documents' words; null for none. A domain may set its own."""
    fusion: FusionSettings = FusionSettings()
    """How the two are weighed against each other."""
