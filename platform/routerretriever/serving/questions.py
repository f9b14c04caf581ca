"""Questions to storage that a service does not wait for longer than a moment."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from routerretriever.errors import RouterRetrieverError

log = logging.getLogger(__name__)

_THREADS = 8


class Questions:
    """Asks in threads of its own, each question once at a time. Used by one thread."""

    def __init__(self, patience: float = 2.0) -> None:
        """Nothing is asked yet.

        Args:
            patience: seconds that the first who asks waits for an answer. While it has not come, others do
                not wait at all.
        """
        self._patience = patience
        self._threads = ThreadPoolExecutor(_THREADS)
        self._open: dict[Hashable, Future[bool]] = {}

    def ask(self, about: Hashable, question: Callable[[], bool], patient: bool = True) -> bool:
        """The answer to a question; False while there is none, or if storage cannot be read.

        Args:
            about: tells questions apart; one that has no answer yet is not asked again.
            question: may take long.
            patient: wait a moment for the answer, rather than take it when this is asked again.
        """
        earlier = self._open.pop(about, None)
        answer = earlier or self._threads.submit(question)
        patience = self._patience if patient and not earlier else 0
        if not wait([answer], timeout=patience).done:
            self._open[about] = answer
            if patience:
                log.warning("storage does not answer; searches go on with the documents that are here")
            return False
        try:
            return answer.result()
        except (RouterRetrieverError, OSError) as error:
            log.warning("searches go on with the documents that are here: %s", error)
            return False
