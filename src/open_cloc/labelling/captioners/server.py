"""Asks a server that speaks the OpenAI chat-completions protocol with pictures, such as vLLM or SGLang."""

from __future__ import annotations

import asyncio
import email.utils
import math
import os
import random
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from open_cloc.config import require
from open_cloc.errors import RunError, UserError
from open_cloc.labelling.captioners.answers import EMPTY, Answer, read_answer
from open_cloc.labelling.captioners.bounded import Reply, UnusableReplyError, request
from open_cloc.labelling.captioners.pictures import data_url, one_line
from open_cloc.labelling.recipe import CaptionConfig
from open_cloc.labelling.types import Caption, Failure
from open_cloc.shown import without_secrets
from open_cloc.texts import sound_text

# Paths below the URL.
CHAT, MODELS = "chat/completions", "models"
# Seconds before the first repetition; then twice as long each time.
FIRST_WAIT = 1.0
# Seconds between repetitions, at most.
LONGEST_WAIT = 60.0
# Seconds that a server may tell us to wait.
LONGEST_RETRY_AFTER = 600.0
# Seconds until a host that does not even refuse counts as not there.
LONGEST_CONNECT = 10.0
# Characters of a server's complaint that are shown.
SHOWN = 300

TIMED_OUT, SERVER_ERROR, UNUSABLE = "server timed out", "server error", "unusable answer"
NOT_THERE, BUSY = "server not there", "server busy"
# What servers call the end of an answer that was long enough, or that their filter has stopped.
CUT_OFF, FILTERED = ("length", "max_tokens"), "content_filter"
# What servers answer where all requests would fail alike.
FOR_ALL = (401, 403, 404)
# What servers answer where one request's content is at fault.
REFUSED_PICTURE = (400, 413, 422)
# Answers that are worth another try, beside 5xx.
PASSING = (408, 409, 425, 429)

Result = TypeVar("Result")


class NoServerError(RunError, ConnectionError):
    """The server of captions is not there, stays busy, or fails on everything."""


class PassingError(Exception):
    """A request that failed for a reason that may pass.

    Attributes:
        cause: Cause of the picture's failure, should the reason not pass.
        message: What happened, in one sentence.
        wait: Seconds that the server asks us to wait, if it does.
    """

    def __init__(self, cause: str, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.cause, self.message, self.wait = cause, message, wait


class ServerCaptioner:
    """Captions from a server, greedily decoded; attributes as in `types.Captioner`.

    At most `config.requests` requests are under way, also where several threads call. They run on an event
    loop in a thread of its own, so that it works where a loop is already running.
    """

    def __init__(
        self,
        config: CaptionConfig,
        device: str = "cpu",
        *,
        first_wait: float = FIRST_WAIT,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Ask the server which models it has.

        Args:
            config: Names the server and its model as `weights`; where that is empty, its only model is taken.
            device: Without use here: the server has its own.
            first_wait: Seconds before a request is made again; doubled each time, and half of it is random.
            sleep: Function that waits so many seconds.

        Raises:
            NoServerError: If the server is not there.
            UserError: If the URL is none, the key is refused, or no model is named and there are several.
        """
        self._config, self._first_wait, self._sleep = config, first_wait, sleep
        self._httpx = require("httpx", "label")
        self._key = _api_key(config.api_key_env)
        self._client, self.url = self._connect(config)
        self._slots = asyncio.Semaphore(config.requests)
        self._has_answered = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="captions", daemon=True)
        self._thread.start()
        try:
            self.served = self._run(self._served_models())
            self.model = config.weights or self._only_model()
        except BaseException:
            self.close()
            raise
        self.provenance: Mapping[str, object] = {
            "name": "server",
            "model": self.model,
            "url": self.url,
            "server_model": self.served.get(self.model),
            "prompt": config.prompt,
            "max_new_tokens": config.max_new_tokens,
            "temperature": 0,
        }

    def __call__(self, images: Sequence[bytes], captions: Sequence[Sequence[str]]) -> list[Caption | Failure]:
        """Encoded pictures -> a new caption each; the given ones are not shown to the server.

        Raises:
            NoServerError: If the server is not there, stays busy, or fails on every picture.
            UserError: If it refuses the key, the URL or the model.
        """
        results = self._run(self._caption_all(images))
        failed = [result for result in results if isinstance(result, Failure)]
        broken = [failure for failure in failed if failure.cause in (TIMED_OUT, SERVER_ERROR)]
        # One picture may be more than a server can bear, but not all of them.
        if broken and len(broken) == len(results) and (len(broken) > 1 or not self._has_answered):
            raise NoServerError(
                f"the captioning server failed on all {len(broken)} pictures of a batch, the last time: "
                f"{broken[-1].message}"
            )
        return results

    def close(self) -> None:
        """Close connections and stop the thread; the captioner is of no use afterwards."""
        if self._loop.is_closed():
            return
        self._run(self._client.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _connect(self, config: CaptionConfig) -> tuple[Any, str]:
        """A client, and the server's URL as it may be shown, without a password."""
        httpx = self._httpx
        given = without_secrets(config.url if "://" in config.url else config.url.rpartition("@")[2])
        try:
            url = httpx.URL(config.url.rstrip("/"))
        except (httpx.InvalidURL, ValueError) as error:
            raise UserError(
                f"caption.url must be a URL; got {given!r}: {without_secrets(str(error))}"
            ) from None
        if url.scheme not in ("http", "https") or not url.host:
            raise UserError(f"caption.url must be like http://localhost:8000/v1; got {given!r}")
        limits = httpx.Limits(max_connections=config.requests, max_keepalive_connections=config.requests)
        connect = min(LONGEST_CONNECT, config.timeout / 2)
        try:
            client = httpx.AsyncClient(
                base_url=url,
                headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
                timeout=httpx.Timeout(config.timeout, connect=connect, pool=None),
                limits=limits,
                # No proxy leads back to this machine.
                trust_env=url.host not in ("localhost", "127.0.0.1", "::1"),
            )
        except Exception as error:  # of many kinds, all from the environment's words
            raise UserError(
                "the proxy or certificates that the environment names cannot be used: "
                f"{one_line(without_secrets(str(error)))}; check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and "
                "SSL_CERT_FILE"
            ) from None
        return client, str(url.copy_with(userinfo=b"", query=None))

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do asynchronous work on our loop, and wait for it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # an interrupted run stops asking
            raise

    # --- on the loop ------------------------------------------------------------------------------

    async def _caption_all(self, images: Sequence[bytes]) -> list[Caption | Failure]:
        tasks = [asyncio.ensure_future(self._caption(image)) for image in images]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def _caption(self, image: bytes) -> Caption | Failure:
        try:
            return await self._captioned(image)
        except (UserError, RunError):
            raise
        except Exception as error:  # an answer of any form: it costs its picture
            return Failure(UNUSABLE, self._hidden(f"{type(error).__name__}: {error}"))

    async def _captioned(self, image: bytes) -> Caption | Failure:
        async with self._slots:  # kept between tries: a server in trouble is asked less
            url = await asyncio.to_thread(data_url, image)
            if isinstance(url, Failure):
                return url
            content = [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": self._config.prompt},
            ]
            body = {
                "model": self.model,
                "messages": [{"role": "user", "content": content}],
                "temperature": 0,
                "max_tokens": self._config.max_new_tokens,
            }
            found = await self._patiently(lambda: self._ask(body), random.Random(zlib.crc32(image)))
        return (
            found if isinstance(found, Failure) else Caption(*found[:1], f"server {self.model}", found.is_cut)
        )

    async def _patiently(
        self, ask: Callable[[], Awaitable[Result]], jitter: random.Random
    ) -> Result | Failure:
        """Try again what failed for a passing reason, after ever longer waits; unusable answers only once."""
        unusable = 0
        for attempt in range(self._config.retries + 1):
            try:
                return await ask()
            except PassingError as error:
                last = error
            unusable += last.cause == UNUSABLE
            if attempt == self._config.retries or unusable > 1:
                break
            wait = min(self._first_wait * 2**attempt, LONGEST_WAIT) * jitter.uniform(0.5, 1)
            await self._sleep(wait if last.wait is None else max(wait, last.wait))
        message = f"{last.message} (tried {attempt + 1} times)"
        if last.cause in (NOT_THERE, BUSY):
            raise NoServerError(message)
        return Failure(last.cause, message)

    async def _ask(self, body: Mapping[str, Any]) -> Answer | Failure:
        """One request for a caption.

        Raises:
            PassingError: If another try may help.
            UserError: If none will, whatever the picture.
        """
        reply = await self._request("POST", CHAT, json=body)
        if reply.status in REFUSED_PICTURE or (self._has_answered and _is_odd(reply.status)):
            return Failure("refused by server", self._complaint(CHAT, reply))
        self._require_success(CHAT, reply)
        found = _answer_of(reply)
        if isinstance(found, Failure) and found.cause == EMPTY:
            raise PassingError(UNUSABLE, f"{self.url}/{CHAT} gave no caption: {self._said(reply)}")
        self._has_answered = True
        return found

    async def _served_models(self) -> dict[str, str]:
        """The server's models, each with what it is made from; empty where the server does not tell."""
        try:
            found = await self._patiently(self._list_models, random.Random(0))
        except NoServerError as error:
            raise NoServerError(
                f"{error}; start a server such as vLLM there, or give its address as caption.url"
            ) from error
        return {} if isinstance(found, Failure) else found

    async def _list_models(self) -> dict[str, str]:
        reply = await self._request("GET", MODELS)
        if reply.status in (401, 403, *PASSING) or reply.status >= 500:
            self._require_success(MODELS, reply)
        try:
            entries = reply.json()["data"] if reply.is_success else []
            return {str(entry["id"]): str(entry.get("root") or entry["id"]) for entry in entries}
        except (ValueError, KeyError, TypeError, AttributeError):
            # The list is not needed: the protocol's servers differ in it.
            return {}

    def _only_model(self) -> str:
        if len(self.served) == 1:
            return next(iter(self.served))
        names = ", ".join(self.served) or "none that it names"
        raise UserError(f"caption.weights must name a model of {self.url}; it has {names}")

    async def _request(self, method: str, path: str, **content: Any) -> Reply:
        """One request; whatever keeps it from being answered becomes a `PassingError`."""
        httpx, url = self._httpx, f"{self.url}/{path}"
        try:
            return await request(self._client, method, path, self._config.timeout, **content)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise PassingError(NOT_THERE, f"no server answers at {url}: {self._reason(error)}") from error
        except (httpx.TimeoutException, asyncio.TimeoutError) as error:
            message = f"{url} gave no answer in {self._config.timeout:g} s"
            raise PassingError(TIMED_OUT, message) from error
        except UnusableReplyError as error:
            raise PassingError(UNUSABLE, f"{url}: {error}") from error
        except Exception as error:  # what broken connections, headers and proxies raise
            raise PassingError(SERVER_ERROR, f"{url} broke off: {self._reason(error)}") from error

    def _reason(self, error: Exception) -> str:
        return self._hidden(str(error)) or type(error).__name__

    def _require_success(self, path: str, reply: Reply) -> None:
        """Nothing if all is well; else the error that says whether to try again."""
        code = reply.status
        if reply.is_success:
            return
        complaint = self._complaint(path, reply)
        if code in PASSING or code >= 500:
            wait = _retry_after(reply.headers.get("Retry-After", ""))
            advice = "; lower caption.requests or raise caption.retries" if code == 429 else ""
            raise PassingError(BUSY if code == 429 else SERVER_ERROR, complaint + advice, wait)
        advice = {
            401: f"set the environment variable {self._config.api_key_env} to the server's key",
            403: f"set the environment variable {self._config.api_key_env} to a key that may use this model",
            404: f"check caption.url (up to /v1) and caption.weights={self._config.weights!r}",
        }.get(code, "check caption.url (up to /v1); redirects are not followed")
        raise UserError(f"{complaint}; {advice}")

    def _complaint(self, path: str, reply: Reply) -> str:
        return f"{self.url}/{path} answered {reply.status}: {self._said(reply)}"

    def _said(self, reply: Reply) -> str:
        """What the server said, on one short line."""
        return self._hidden(_message_in(reply)) or "nothing"

    def _hidden(self, text: str) -> str:
        """A text on one short line, without our key, which some servers repeat."""
        text = text.replace(self._key, "***") if self._key else text
        return one_line(sound_text(text))[:SHOWN]


def _is_odd(status: int) -> bool:
    """Whether a code says neither that all is well, nor that all requests will fail, nor to try again."""
    return not (200 <= status < 300 or status in (*FOR_ALL, *PASSING) or status >= 500)


def _message_in(reply: Reply) -> str:
    """The message of an error in one of the forms that servers use; any other text as it is."""
    try:
        document = reply.json()
        error = document.get("error", document)
        return str(error.get("message") or error.get("detail") or reply.text)
    except (ValueError, AttributeError):  # no JSON, or JSON of another form
        return reply.text


def _answer_of(reply: Reply) -> Answer | Failure:
    """The caption of an answer, or what it is instead."""
    try:
        choice = reply.json()["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        refusal = "stopped by the server's filter" if reason == FILTERED else message.get("refusal")
        return read_answer(message.get("content"), reason in CUT_OFF, refusal)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return Failure(EMPTY, "no answer of the protocol")


def _retry_after(header: str) -> float | None:
    """Seconds from a `Retry-After` header, which is a number of them or a date."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError, OSError):  # dates beyond what the system knows
            return None
    if math.isnan(seconds):
        return None
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)


def _api_key(variable: str) -> str:
    """The key in an environment variable; empty where there is none. No message ever shows it."""
    key = os.environ.get(variable, "").strip() if variable else ""
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"the key in the environment variable {variable} must be plain printable text")
    return key
