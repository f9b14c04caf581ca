"""The synchronous client, made of the asynchronous one. `make client` writes it; a test compares."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from unasync import Rule, unasync_files

from support.paths import BIN, ROOT

CLIENT = ROOT / "platform" / "routerretriever" / "client"
WRITTEN = CLIENT / "synchronous" / "client.py"
_NAMES = {
    "AsyncClient": "Client",
    "AsyncBaseTransport": "BaseTransport",
    "aclose": "close",
    "asyncio": "time",
}
_SOURCE = '"""The client to await. The other is made of this file: `make client`."""'
_MADE = '"""Made of asynchronous/client.py by `make client`; change that file, not this one."""'


def synchronous_client() -> str:
    """The text of the client that does not await."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "asynchronous" / "client.py"
        source.parent.mkdir()
        shutil.copyfile(CLIENT / "asynchronous" / "client.py", source)
        unasync_files([str(source)], [Rule("/asynchronous/", "/synchronous/", _NAMES)])
        made = (Path(scratch) / "synchronous" / "client.py").read_text()
    made = made.replace(_SOURCE, _MADE)
    # Without "await" what was wrapped fits on a line.
    command = [BIN / "ruff", "format", "--config", ROOT / "pyproject.toml", "-"]
    return subprocess.run(command, input=made, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    WRITTEN.write_text(synchronous_client())
