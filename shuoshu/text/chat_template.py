"""A folder's own chat template: the text that it writes around the messages of a conversation."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache

from shuoshu.core.errors import REPO_ROOT, UserError

Request = tuple[tuple[str, ...], bool]  # roles of the messages, and whether an answer is asked for
RENDERED_AHEAD = 8  # messages; rendering more conversations at once saves processes
REQUESTS_PER_PROCESS = 64
MAX_SECONDS = 60  # of one process that waits for a busy machine; it limits its own CPU time
# Stands for message n while the template is rendered. It has what templates might change: letters
# of both cases, quotation marks, HTML, line ends and spaces. The private-use characters around it
# keep it from being stripped or confused with text.
MARK = "\ue000{}:aB\n\"<&>'  \\\t%\ue001"
EACH_ONCE = "training needs each message once, unchanged and in order"
MAX_ROLES_SHOWN = 4
MARKS = re.compile("\ue000(\\d+):[^\ue000\ue001]*\ue001")


class ChatTemplate:
    """Renders roles, without the messages' contents, and tells literal text from contents.

    variables: names that the template may use, such as bos_token. where: for messages.
    """

    def __init__(self, source: str, variables: Mapping[str, str], where: str) -> None:
        self.source, self.variables, self.where = source, dict(variables), where
        self._rendered: dict[Request, dict[str, str]] = {}

    def literals(self, roles: Sequence[str], asks: bool) -> list[str]:
        """The texts before the first message, between the messages, and after the last one.

        asks: the last text ends where the assistant's answer would begin. Raises UserError if the
        template fails, or doesn't write each message once, unchanged and in order.
        """
        request = tuple(roles), asks
        if request not in self._rendered:
            self._render_from(request)
        result = self._rendered[request]
        if "error" in result:
            raise self._unfit(roles, result["error"])
        text = result["text"]
        found = [match[0] for match in MARKS.finditer(text)]
        if found != [MARK.format(number) for number in range(len(roles))]:
            raise self._unfit(roles, self._explain(text, roles))
        return MARKS.split(text)[::2]  # without the messages' numbers

    def _explain(self, text: str, roles: Sequence[str]) -> str:
        """What the template did to the messages of these roles."""
        for number, role in enumerate(roles):
            if text.count(MARK.format(number)) != 1:
                found = text.count(f"\ue000{number}:")
                what = "more than once" if found > 1 else "changed" if found else "not at all"
                return f"it writes message {number + 1} ({role}) {what}, but {EACH_ONCE}"
        return f"it changes the messages' order, but {EACH_ONCE}"

    def _unfit(self, roles: Sequence[str], reason: str) -> UserError:
        shown = ", ".join(roles[:MAX_ROLES_SHOWN]) + " …" * (len(roles) > MAX_ROLES_SHOWN)
        return UserError(
            f"the chat template in {self.where} can't be used for a conversation of {shown}:"
            f" {reason}"
        )

    def _render_from(self, request: Request) -> None:
        """Renders the request, and conversations that it is the beginning or a later part of."""
        longest = list(request[0])
        for _ in range(RENDERED_AHEAD):
            longest.append("user" if longest and longest[-1] != "user" else "assistant")
        beginnings = [tuple(longest[:n]) for n in range(1, len(longest))]
        wanted = [request, *((roles, roles[-1] != "assistant") for roles in beginnings)]
        missing = [one for one in dict.fromkeys(wanted) if one not in self._rendered]
        for start in range(0, len(missing), REQUESTS_PER_PROCESS):
            part = tuple(missing[start : start + REQUESTS_PER_PROCESS])
            results = render_apart(self.source, tuple(sorted(self.variables.items())), part)
            self._rendered.update(zip(part, results, strict=True))


@lru_cache(maxsize=64)
def render_apart(
    source: str, variables: tuple[tuple[str, str], ...], requests: tuple[Request, ...]
) -> tuple[dict[str, str], ...]:
    """{"text": …} or {"error": …} for each request, rendered by a template_worker process."""
    conversations = [
        ([{"role": role, "content": MARK.format(n)} for n, role in enumerate(roles)], asks)
        for roles, asks in requests
    ]
    endless = ({"error": "it doesn't come to an end"},) * len(requests)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "shuoshu.text.template_worker"],
            cwd=REPO_ROOT,
            input=json.dumps([source, dict(variables), conversations]),
            capture_output=True,
            text=True,
            timeout=MAX_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return endless
    if done.returncode < 0:  # killed by the limit of its CPU time
        return endless
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        return ({"error": f"rendering failed ({reason[:300]})"},) * len(requests)
    return tuple(json.loads(done.stdout))
