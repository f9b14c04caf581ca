"""What a language model is asked for a query, and what is left of its answer.

Chat models get an instruction. Small models follow a pattern better than an instruction: they continue a
list of documents and queries. All its prompts of one type begin with the same text, which is read once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from routerretriever.datasets.reading import mend
from routerretriever.datasets.texts import first_words
from routerretriever.generation.settings import Example, GenerationSettings, QueryType
from routerretriever.hashing import content_hash

Message = dict[str, str]
"""A message of a chat: its ``role`` and ``content``."""

PROMPT_VERSION = 1
"""Raise it when a prompt changes: queries that were written before are then written anew."""

_BYTES_A_TOKEN = 3
"""Fewer than there are in most languages. A Chinese character has three, a Cyrillic letter two."""
_TASKS: dict[QueryType, str] = {
    "question": "Write one question that a person would ask and that this document answers.",
    "keywords": "Write two to six keywords that a person would type into a search box to find this document.",
    "claim": "Write one short factual claim that this document confirms or refutes.",
    "title": "Write a short title that another text on the subject of this document could have.",
    "conversational": "Write what a person would say to an assistant, in everyday words, who needs what this "
    "document says.",
    "examples": "Write one search query for this document, in the form and style of the examples.",
}
_LABELS: dict[QueryType, str] = {
    "question": "Question", "keywords": "Keywords", "claim": "Claim", "title": "Title",
    "conversational": "Message", "examples": "Query",
}  # fmt: skip
_SYSTEM = (
    "You write search queries for documents. Answer with the query alone, on one line, without quotation "
    "marks or explanation. Use the document's language. Do not copy sentences. Do not mention the document."
)
SHOWN = (
    "Bees of a hive keep its middle at about 35 degrees. In winter they form a cluster and shiver with their "
    "flight muscles; the ones outside move in by turns. They live on honey that was stored in summer.",
    "The warranty covers defects in material for two years from delivery. Batteries are excluded. Send the "
    "receipt and a photograph of the defect to the service address.",
)
"""Documents of the built-in examples, for those who bring none."""
_BUILT_IN: dict[QueryType, tuple[str, str]] = {
    "question": ("how do bees stay warm in winter", "are batteries part of the warranty"),
    "keywords": ("bee colony winter temperature", "warranty claim receipt defect"),
    "claim": (
        "Bees heat their hive by shivering in winter.",
        "The warranty does not include batteries.",
    ),
    "title": ("How honey bees survive the cold", "Making use of a guarantee"),
    "conversational": (
        "I have a hive in the garden and it is freezing, will they make it through the winter?",
        "my device broke after a year, what do I have to send you?",
    ),
}
_LABELLED = re.compile(
    r"^(?:[-*•]|\d+[.)])?\s*(?:(?:search )?(?:query|question|keywords|claim|title|message))\s*[:：]\s*", re.I
)

_BEFORE = re.compile(r"\W*|`{3}\w*|.*[:：]\**")
"""Lines before a query: marks alone, the start of a block of code, an announcement."""


_IN_A_FENCE = re.compile(r"(?s)\s*`{3}\w*\n(.*)`{3}\s*")
_FIRST_OF_LIST, _SECOND_OF_LIST = ("1. ", "1) "), ("2. ", "2) ")
_QUOTATION_MARKS = {'""', "''", "``", "“”", "‘’", "«»", "„“", "„”", "””", "»«", "「」", "『』"}


@dataclass(frozen=True)
class Prompt:
    """What a language model is asked."""

    messages: tuple[Message, ...]
    """For models that chat."""
    beginning: str
    """For models that continue texts: what many prompts have in common; it is read once."""
    ending: str
    """What follows it."""
    seed: int
    """Of its answer's random choices."""


@dataclass(frozen=True)
class Request:
    """One query that is to be written."""

    document: str
    """Id of the source document."""
    type: QueryType
    text: str
    """What the writer reads of the document."""

    @property
    def id(self) -> tuple[str, str]:
        """Document and type, by which its answer is found."""
        return self.document, self.type


def shorten(title: str, text: str, words: int) -> str:
    """The first words of a document, on one line."""
    whole = text if not title or text.startswith(title) else f"{title}. {text}"
    return first_words(whole, words)


def prompt_for(request: Request, settings: GenerationSettings) -> Prompt:
    """What a model is asked for a query."""
    return Prompt(
        tuple(chat(request, settings.examples)),
        continuation(request.type, settings.examples),
        ending(request),
        seed_of(settings.seed, request.document, request.type),
    )


def seed_of(*parts: object) -> int:
    """A seed by what it is for, the same on every machine."""
    return int(content_hash(*parts)[:7], 16)


def most_tokens(prompt: Prompt, max_tokens: int) -> int:
    """What a prompt and an answer of at most ``max_tokens`` take, rather too high, as budgets reckon."""
    return estimated_tokens(*(message["content"] for message in prompt.messages)) + max_tokens


def estimated_tokens(*texts: str) -> int:
    """An estimate, rather too high."""
    return sum(len(text.encode(errors="replace")) for text in texts) // _BYTES_A_TOKEN


def without_thoughts(answer: str) -> str:
    """An answer without what a model thought aloud.

    Thoughts may begin without a mark: the templates of some models, as of DeepSeek-R1, end with ``<think>``.
    """
    marked = re.sub(r"(?s)<(think|thinking|thought)>.*?(?:</\1>|$)", "", answer)
    return re.sub(r"(?s)\A.*</(?:think|thinking|thought)>", "", marked)


def chat(request: Request, examples: Sequence[Example]) -> list[Message]:
    """The messages that ask a chat model for a query."""
    parts = [_TASKS[request.type]]
    if request.type == "examples":
        parts += [_shown(example) for example in examples]
    parts.append(f"Document: {request.text}\nQuery:")
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": "\n\n".join(parts)}]


def continuation(type_: QueryType, examples: Sequence[Example]) -> str:
    """The beginning that all prompts of a type share, for a model that continues texts."""
    label = _LABELS[type_]
    if type_ == "examples":
        alone = [example.query for example in examples if not example.document]
        with_document = [example for example in examples if example.document]
        parts = [f"Queries that people ask:\n{chr(10).join(alone)}"] if alone else []
        parts += [f"Document: {one.document}\n{label}: {one.query}" for one in with_document]
    else:
        shown = zip(SHOWN, _BUILT_IN[type_], strict=True)
        parts = [f"Document: {document}\n{label}: {query}" for document, query in shown]
    return "".join(f"{part}\n\n" for part in parts)


def ending(request: Request) -> str:
    """What follows that beginning; the model goes on from there."""
    return f"Document: {request.text}\n{_LABELS[request.type]}:"


def clean(answer: str) -> str:
    """The query in a model's answer: its first line, without labels and quotation marks; empty if none.

    What stands before the query, as ``Here is one:``, is passed over, if a line follows. Of a list it is the
    first item, of JSON the first text, or that of ``query``.
    """
    whole = _text_of_json(without_thoughts(answer))
    lines = [" ".join(line.split()) for line in whole.splitlines() if line.strip()]
    line = next((line for line in lines if not _BEFORE.fullmatch(line)), lines[0] if lines else "")
    if line.startswith(_FIRST_OF_LIST) and any(other.startswith(_SECOND_OF_LIST) for other in lines):
        line = line[3:]  # a number alone may be the query's: 1. FC Köln
    line = re.sub(r"^[-*•] +", "", line)
    line = _LABELLED.sub("", re.sub(r"^\*\*(.+?)\*\*", r"\1", line))
    return (line[1:-1] if _is_quoted(line) else line).strip()


def _text_of_json(answer: str) -> str:
    """The text in an answer that is JSON; any other answer as it is."""
    fenced = _IN_A_FENCE.fullmatch(answer)
    try:
        value = json.loads(fenced[1] if fenced else answer)
    except (ValueError, RecursionError):
        return answer
    while isinstance(value, dict | list) and value:
        value = value.get("query", next(iter(value.values()))) if isinstance(value, dict) else value[0]
    return mend(value) if isinstance(value, str) else answer


def _is_quoted(line: str) -> bool:
    """Whether quotation marks stand around the whole line, and not around words at both of its ends."""
    marks = line[:1] + line[-1:]
    if len(line) < 2 or marks not in _QUOTATION_MARKS:
        return False
    return not re.match(rf"[^{marks}]*(?<=\S)[{marks}](?!\w)", line[1:-1])


def _shown(example: Example) -> str:
    document = f"Document: {example.document}\n" if example.document else ""
    return f"{document}Query: {example.query}"
