"""Who may ask, and how much: bearer tokens with rates and weights.

A tokens file is YAML, one entry a client. It holds hashes, so that reading it lets nobody in:

    search-team: {sha256: 5e88..., requests_per_minute: 600, tokens_per_minute: 100000}
    importer: {sha256: 8c69..., write: true}
    tenant: {sha256: 2cf2..., collections: [notes, wiki], write: [notes]}

``printf %s "$TOKEN" | sha256sum`` makes the hash. Each router replica lets its share of a rate pass.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt, StringConstraints, TypeAdapter, ValidationError

from routerretriever.config.loading import read_settings
from routerretriever.config.serving import ServingSettings
from routerretriever.errors import RateExceeded, RecipeError
from routerretriever.serving.access import Access
from routerretriever.serving.http.rates import Allowance
from routerretriever.settings import DomainName, Settings


class Token(Settings):
    """What one client may do."""

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the token, in hex."""
    requests_per_minute: PositiveInt | None = None
    """Requests in a minute before the client gets 429."""
    tokens_per_minute: PositiveInt | None = None
    """Tokens of text in a minute, about, before the client gets 429."""
    weight: Annotated[float, Field(ge=0.01, le=100.0)] = 1.0
    """The client's share of the encoder beside others that are busy is in proportion to it."""
    collections: frozenset[DomainName] | None = None
    """Collections that may be read; by default all. To this client there are no others."""
    write: bool | frozenset[DomainName] = False
    """Collections that may be created, changed and deleted: none, all that may be read, or these."""

    def access(self, name: str) -> Access:
        """What this client may do."""
        write = self.write
        names = (None if write else frozenset()) if isinstance(write, bool) else write
        return Access(name, self.collections, names, self.weight)


_TOKENS = TypeAdapter(Annotated[dict[str, Token], Field(min_length=1)])


def read_tokens(settings: ServingSettings, listens_at: str | None = None) -> dict[str, Token]:
    """The clients that are let in, by name; none means that everybody is.

    Args:
        settings: whose they are.
        listens_at: Serve's own host, where it was started by somebody else.

    Raises:
        RecipeError: the file is missing or wrong, or other machines could ask without a token.
    """
    if settings.tokens_file is None:
        for field, host in (("serving.host", settings.host), ("http_options.host", listens_at)):
            if not (host is None or settings.allow_anonymous or is_loopback(host)):
                raise RecipeError(
                    f"{field}: {host} lets other machines ask; name a serving.tokens_file, "
                    "or set serving.allow_anonymous: true if something in front checks who asks"
                )
        return {}
    path = Path(settings.tokens_file).expanduser()
    try:
        tokens = _TOKENS.validate_python(read_settings(path))
    except RecipeError as error:
        raise RecipeError(f"serving.tokens_file: {error}") from None
    except ValidationError as error:
        # Without the values: they are secrets.
        lines = [f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()]
        raise RecipeError(f"serving.tokens_file: {path}: {'; '.join(lines)}") from None
    owners: dict[str, str] = {}
    for name, token in tokens.items():
        if (owner := owners.setdefault(token.sha256, name)) != name:
            raise RecipeError(
                f"serving.tokens_file: {path}: {name}.sha256: is that of {owner}, too; "
                "give each client a token of its own"
            )
    return tokens


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Denied:
    """Why a request is not let in."""

    status: int
    message: str
    retry_after: int | None = None


class Authenticator:
    """Checks tokens and rates."""

    replicas: int = 1
    """How many router replicas share the rates."""

    def __init__(self, tokens: Mapping[str, Token], allow_anonymous: bool = False) -> None:
        self._by_hash = {token.sha256: (name, token) for name, token in tokens.items()}
        self._allow_anonymous = allow_anonymous
        self._requests = _allowances({name: token.requests_per_minute for name, token in tokens.items()})
        self._tokens = _allowances({name: token.tokens_per_minute for name, token in tokens.items()})

    def check(self, authorization: str, host: str, address: str | None, writes: bool) -> Access | Denied:
        """What the client may do, or why the request is denied.

        Args:
            authorization: the header of that name.
            host: the header of that name: what the client calls this service.
            address: of who asks; without tokens only this machine may. It is the client's name then.
            writes: whether a collection would be changed; which one is looked at later.
        """
        if not self._by_hash:
            return self._anonymous(host, address)
        kind, _, secret = authorization.partition(" ")
        known = self._by_hash.get(hashlib.sha256(secret.strip().encode()).hexdigest())
        if kind.lower() != "bearer" or known is None:
            return Denied(401, "Authorization: a known bearer token is needed")
        name, token = known
        if writes and not token.write:
            return Denied(403, "Authorization: this token may not change anything")
        if name in self._requests and (seconds := self._requests[name].take(1, self.replicas)):
            return Denied(
                429, f"more than {token.requests_per_minute} requests in a minute", math.ceil(seconds)
            )
        return token.access(name)

    def charge(self, client: str, tokens: int) -> None:
        """Count tokens of text that a client has asked to be read.

        Raises:
            RateExceeded: there have been too many; these are not counted.
        """
        if client in self._tokens and (seconds := self._tokens[client].take(tokens, self.replicas)):
            most = self._tokens[client].per_minute
            message = f"more than {most} tokens of text in a minute; this request has about {tokens}"
            raise RateExceeded(message, seconds)

    def give_back(self, client: str, tokens: int) -> None:
        """Count tokens no longer: the service was too busy to read them."""
        if client in self._tokens:
            self._tokens[client].give_back(tokens, self.replicas)

    def _anonymous(self, host: str, address: str | None) -> Access | Denied:
        if not self._allow_anonymous:
            if not (address is None or is_loopback(address)):
                return Denied(403, "this service has no tokens and answers its own machine only")
            if not is_loopback(_without_port(host)):
                # A page in a browser of this machine may ask by a name of its own that leads here.
                return Denied(
                    403,
                    f"Host: found {host!r}; without tokens this service is called localhost or 127.0.0.1; "
                    "set serving.tokens_file, or serving.allow_anonymous behind a proxy that checks who asks",
                )
        return Access(address or "")


def _allowances(rates: Mapping[str, int | None]) -> dict[str, Allowance]:
    """Of the clients that have a rate."""
    return {name: Allowance(per_minute) for name, per_minute in rates.items() if per_minute is not None}


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
