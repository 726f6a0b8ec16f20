"""The program that hands one message to Apprise, in a process of its own: `python -m pipeline.messenger`.

A job comes as JSON on the standard input and an answer goes as JSON to the standard output. In a process, since only
that can be ended when a target hangs, since the address of a target must stand in no list of processes, and since here
alone a guard can stand before every connection, whichever library opens it and wherever it was redirected to.
"""

import json
import logging
import sys
from typing import Any

from django.conf import settings

from pipeline.egress import AddressRefused, refuse_internal

# What a notification needs none of; Apprise has plugins that would use them.
FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty")
CONNECTS = ("socket.connect", "socket.sendto", "socket.sendmsg")
TYPES = {"debug": "info", "info": "info", "warning": "warning", "error": "failure", "critical": "failure"}


class Guard:
    """An audit hook of the interpreter: nothing is started, and no internal address is reached.

    It sees the addresses that are really connected to, after every look-up and redirect; `refused` are the sentences
    about those that were not.
    """

    def __init__(self) -> None:
        self.refused: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Raises PermissionError for what must not be: to libraries an ordinary failure to connect."""
        if event in FORBIDDEN:
            raise PermissionError(f"{event} is forbidden here")
        if event in CONNECTS:
            address = arguments[-1]
            try:
                # Sockets of this machine have a path for an address, others a tuple that begins with the host.
                refuse_internal(str(address[0]).partition("%")[0] if isinstance(address, tuple) else "")
            except AddressRefused as refusal:
                self.refused.append(str(refusal))
                raise PermissionError(str(refusal)) from None
            except ValueError:
                self.refused.append("It is no address of the network")
                raise PermissionError(self.refused[-1]) from None


def do(job: dict[str, Any]) -> dict[str, Any]:
    """{"ok": true}, or {"ok": false, "why": a sentence}. Without a "body" the target is only read, nothing is sent."""
    import apprise  # late: only the process that sends pays for loading it

    # Apprise speaks of itself and fetches nothing: no images of others, no redirects, no retries behind our back.
    asset = apprise.AppriseAsset(
        app_id="Signalbox", app_desc="Signalbox", app_url="", image_url_mask="", image_url_logo="",
        image_path_mask="", http_redirects=False, interpret_emojis=False, interpret_escapes=False,
        async_mode=False, secure_logging=True, pgp_autogen=False, pem_autogen=False,
    )  # fmt: skip
    service = apprise.Apprise.instantiate(job["target"], asset=asset)
    if service is None:
        return {"ok": False, "why": "Apprise cannot read it as an address of this kind: something in it is missing"}
    if not getattr(service, "targets", True):
        return {"ok": False, "why": "it names nobody to tell"}
    if "body" not in job:
        return {"ok": True}
    guard = Guard()
    sys.addaudithook(guard)
    service.overflow_mode = apprise.OverflowMode.TRUNCATE
    service.socket_connect_timeout = service.socket_read_timeout = float(job["timeout_seconds"])
    house = apprise.Apprise(asset=asset)
    house.add(service)
    result = house.notify(
        title=job["title"],
        body=job["body"],
        notify_type=TYPES[job["severity"]],
        body_format=apprise.NotifyFormat.TEXT,
        log_level=logging.WARNING,
    )
    if result:
        return {"ok": True}
    if guard.refused:
        return {"ok": False, "why": guard.refused[0]}
    told = " ".join(dict.fromkeys(str(entry.message).strip() for entry in result.logs()))
    return {"ok": False, "why": told or "the target did not take it"}


if __name__ == "__main__":
    given = json.load(sys.stdin)
    settings.configure(SIGNALBOX_WEBHOOK_ALLOW_NETS=given["allowed"])
    json.dump(do(given), sys.stdout)
