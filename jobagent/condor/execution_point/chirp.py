"""Tell the starter of a job's new attributes, over the socket that it keeps for the job (HTCondor's Chirp protocol).

What a hook prints changes the starter's copy of the job ad only; what goes through here reaches the queue, the
history and, in the next update, the user log.  The starter takes delayed updates of attributes that
`CHIRP_DELAYED_UPDATE_PREFIX` names; it needs no `+WantIOProxy` in the job.
"""

from __future__ import annotations

import _socket as socket  # as in jobagent.node.client: the rest of it takes long to import

from jobagent.condor.language import longform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG_VARIABLE = "_CONDOR_CHIRP_CONFIG"
LINE_MAX_BYTES = 1000  # CHIRP_LINE_MAX of HTCondor is 1024 with the newline and NUL
ANSWER_MAX_BYTES = 64
_ESCAPED = str.maketrans({sign: "\\" + sign for sign in "\\ \t\n"})


class Chirp:
    """One connection to the starter; a context manager.  Every failure is an OSError."""

    def __init__(self, config: str, *, timeout_s: float = 5.0) -> None:
        """Connect with the contents of `.chirp.config`: host, port and cookie."""
        host, port, cookie = config.split()[:3]
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.connect((host, int(port)))
            self._call("cookie", cookie)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Chirp:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def update(self, attributes: Mapping[str, longform.Value]) -> None:
        """Set attributes of the job, with the starter's next update to the shadow."""
        for name, value in attributes.items():
            self._call("set_job_attr_delayed", name, longform.literal(value))

    def log(self, text: str) -> bool:
        """Write an event to the user log; False where the job does not allow it (`+WantRemoteUpdates`)."""
        try:
            self._call("ulog", text)
        except OSError:
            return False
        return True

    def _call(self, *words: str) -> None:
        line = " ".join(word.translate(_ESCAPED) for word in words).encode()
        if len(line) > LINE_MAX_BYTES:
            raise OSError(f"{words[0]} {words[1]}: {len(line)} bytes are too many for the starter")
        self._socket.sendall(line + b"\n")
        answer = self._answer().strip()
        if not answer or int(answer) < 0:
            raise OSError(f"the starter refused {words[0]}: {answer.decode(errors='replace') or 'connection closed'}")

    def _answer(self) -> bytes:
        """Read one line; there is never more, since the starter says nothing unasked."""
        line = b""
        while not line.endswith(b"\n") and len(line) < ANSWER_MAX_BYTES and (chunk := self._socket.recv(64)):
            line += chunk
        return line
