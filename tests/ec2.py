"""What moto's EC2 lacks: client tokens, refusals, delays. All through botocore's event hooks."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

from botocore.awsrequest import AWSResponse
from botocore.exceptions import ReadTimeoutError
from botocore.httpsession import URLLib3Session

_ERROR = (
    "<?xml version='1.0' encoding='UTF-8'?><Response><Errors><Error><Code>{}</Code>"
    "<Message>{}</Message></Error></Errors><RequestID>r-1</RequestID></Response>"
)


class _Raw(io.BytesIO):
    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self.read()


@dataclass
class Ec2Faults:
    """Stands before a client's requests. What it keeps is for tests to look at, and to change.

    `refuse`: of an action and its parameters the code of the error to give, "" for none.
    `lost`: so many answers to RunInstances get lost, the instance made. `hidden`: instances that
    EC2 does not show yet.
    """

    refuse: Callable[[str, dict[str, str]], str] = lambda action, parameters: ""
    lost: int = 0
    hidden: set[str] = field(default_factory=set)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    _answers: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def calls(self, action: str) -> list[dict[str, str]]:
        """Return the parameters of each request of an action."""
        return [parameters for name, parameters in self.asked if name == action]

    def __call__(self, request: Any, event_name: str, **_: Any) -> AWSResponse | None:
        body = request.body if isinstance(request.body, bytes) else str(request.body).encode()
        parameters = {key: value[0] for key, value in parse_qs(body.decode()).items()}
        action = event_name.rpartition(".")[2]
        self.asked.append((action, parameters))
        code = self.refuse(action, parameters)
        if code:
            return answer(request, code)
        named = [v for k, v in parameters.items() if k.startswith("InstanceId.")]
        unknown = sorted(self.hidden.intersection(named))
        if unknown:
            message = f"The instance IDs '{', '.join(unknown)}' do not exist"
            return answer(request, "InvalidInstanceID.NotFound", message)
        if action == "RunInstances":
            return self._once(request, body, parameters["ClientToken"])
        return None

    def hide(self, parsed: dict[str, Any], **_: Any) -> None:
        """Leave out of a list what is hidden."""
        for held in parsed.get("Reservations", ()):
            held["Instances"] = [i for i in held["Instances"] if i["InstanceId"] not in self.hidden]

    def _once(self, request: Any, body: bytes, token: str) -> AWSResponse:
        """Launch once for each client token, as EC2 does."""
        with self._lock:
            if token not in self._answers:
                made = URLLib3Session().send(request)
                if made.status_code != 200:
                    return made
                self._answers[token] = (body, made.content)
            first, content = self._answers[token]
            if first != body:
                return answer(request, "IdempotentParameterMismatch")
            if self.lost:
                self.lost -= 1
                raise ReadTimeoutError(endpoint_url=request.url)
        return AWSResponse(request.url, 200, {}, _Raw(content))


def answer(request: Any, code: str, message: str = "it is refused") -> AWSResponse:
    """Return an error as EC2 sends it."""
    status = 503 if code in ("RequestLimitExceeded", "Unavailable") else 400
    if code in ("InternalError", "InsufficientInstanceCapacity"):
        status = 500
    body = _ERROR.format(escape(code), escape(message)).encode()
    return AWSResponse(request.url, status, {"content-type": "text/xml"}, _Raw(body))


@contextlib.contextmanager
def faults(api: Any) -> Iterator[Ec2Faults]:
    """Have a client's requests go through faults."""
    made = Ec2Faults()
    api.meta.events.register("before-send.ec2", made)
    api.meta.events.register("after-call.ec2.DescribeInstances", made.hide)
    try:
        yield made
    finally:
        api.meta.events.unregister("before-send.ec2", made)
        api.meta.events.unregister("after-call.ec2.DescribeInstances", made.hide)
