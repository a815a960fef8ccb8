"""One registry's HTTP: oras-py with what it lacks.

Of oras: where credentials come from (docker's config.json, credential helpers), challenges and
tokens. Ours, in `send_once` and `retry`, through which every request goes: time-outs, a bound on
what an answer may hold, retries that heed Retry-After, a token for each scope, bodies that can be
sent again. Who gets credentials: the registry's own origin, and a token realm on its host, in
`KNOWN_REALMS`, or named by the user; never the target of a redirect or an upload's location
elsewhere, never a plain connection where the registry's is TLS. A registry on this machine that is
asked plainly and turns out to speak TLS is asked by that from then on (`edges/loopback`); never the
other way round. Proxies come from the environment, as requests has it; .netrc is not read. Safe for
threads.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any, Final
from urllib.parse import urljoin, urlsplit, urlunsplit

import oras.auth.utils
import oras.logger
import oras.provider
import requests

from layerkit.edges.loopback import speaks_tls
from layerkit.edges.registry.traffic import BrokenError, Traffic
from layerkit.edges.upstream import asked_pause, reason_of
from layerkit.errors import (
    FormatError,
    LayerkitError,
    NotFoundError,
    RemoteDeniedError,
    RemoteError,
    RemoteLimitError,
    UsageError,
)

__all__ = ["PATIENCE", "Transport"]

CONNECT_SECONDS: Final = 10.0
READ_SECONDS: Final = 60.0  # between two reads; a registry may hash a layer before it answers
PATIENCE: Final = 60.0  # seconds in which a request is tried again, pauses included
ATTEMPTS: Final = 6
FIRST_PAUSE: Final = 0.25  # seconds; doubles, and jitters so that many do not come at once
MAX_REDIRECTS: Final = 5
MAX_ERROR_SIZE: Final = 64 << 10
MAX_TOKEN_SIZE: Final = 1 << 20
MAX_SCOPE_COUNT: Final = 1024  # whose tokens are kept
POOL_SIZE: Final = 16
RETRIED: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_API_HOSTS: Final = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}
# hosts of token servers that are known to be of these registries
KNOWN_REALMS: Final = {
    "registry-1.docker.io": ("auth.docker.io",),
    "registry.gitlab.com": ("gitlab.com",),
}
_DOCKER_HUB_NAMES: Final = ("https://index.docker.io/v1/", "index.docker.io", "docker.io")
_log = logging.getLogger(__name__)
# oras prints to stderr in colours: it talks to our log instead
oras.logger.logger.log_handler = [lambda said: _log.debug("oras: %s", said.get("msg"))]

Body = Callable[[], Any]  # opens what is sent, anew for each attempt: a file, bytes
_Scope = tuple[str, str]


class _Session(requests.Session):
    """A session whose requests end and are counted, and which takes no credentials from .netrc."""

    def __init__(self, connect: float, read: float, traffic: Traffic) -> None:
        super().__init__()
        self._traffic = traffic
        self.auth = lambda request: request  # else requests looks into .netrc
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # as oras has it
        self._timeout = (connect, read)
        adapter = requests.adapters.HTTPAdapter(pool_maxsize=POOL_SIZE)
        self.mount("https://", adapter)
        self.mount("http://", adapter)

    def request(self, method: str, url: str, **facts: Any) -> Any:  # type: ignore[override]
        """As requests has it; a body that is not streamed is read within MAX_TOKEN_SIZE."""
        streamed = facts.pop("stream", False)
        facts.setdefault("timeout", self._timeout)
        started = time.monotonic()
        answer = super().request(method, url, stream=True, **facts)
        seconds = time.monotonic() - started
        self._traffic.sent(method, facts.get("data"), seconds, answer.status_code)
        if not streamed:
            answer._content = self._traffic.read(answer, MAX_TOKEN_SIZE)
        elif method == "HEAD" or answer.headers.get("Content-Length") == "0":
            _ = answer.content  # nothing: but only what was read gives its connection back
        return answer

    def rebuild_auth(self, prepared_request: Any, response: Any) -> None:
        """A redirect to another origin loses its credentials, and gets no others."""
        if self.should_strip_auth(response.request.url, prepared_request.url):
            prepared_request.headers.pop("Authorization", None)


class Transport(oras.provider.Registry):  # type: ignore[misc]
    """Requests to the registry at `host`. `config` is docker's config.json, if not the usual one;
    `ca` a file of certificates; `client_cert` and `client_key` what only the registry is shown;
    `realms` hosts of token servers that may get its credentials."""

    def __init__(
        self,
        host: str,
        *,
        plain_http: bool = False,
        config: Path | None = None,
        ca: Path | None = None,
        client_cert: Path | None = None,
        client_key: Path | None = None,
        realms: Collection[str] = (),
        patience: float = PATIENCE,
        read_seconds: float = READ_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        for path in (ca, client_cert, client_key):
            if path is not None and not path.is_file():
                raise UsageError(f"{path} does not exist", hint="name a file in PEM")
        api_host = _API_HOSTS.get(host, host)
        super().__init__(api_host, insecure=plain_http, tls_verify=str(ca) if ca else True)
        self.traffic = Traffic()
        session = _Session(CONNECT_SECONDS, read_seconds, self.traffic)
        self.session = session
        self.auth.session = session
        session.headers.update({"User-Agent": "layerkit", "Accept-Encoding": "identity"})
        self.host = host
        self.prefix: str  # of oras: the scheme
        self.base = f"{self.prefix}://{api_host}"
        self._origin = _origin_of(self.base)
        shown = [str(path) for path in (client_cert, client_key) if path is not None]
        self._certificate = tuple(shown) if len(shown) > 1 else shown[0] if shown else None
        self._realms = {*realms, *KNOWN_REALMS.get(api_host, ())}
        self._patience = patience
        self._sleep = sleep
        self._lock = threading.Lock()
        self._headers: dict[_Scope, str] = {}  # by scope: what Authorization was accepted
        self._config = config
        self._has_looked = False
        self._may_be_tls = plain_http  # until something was answered

    # --- requests ------------------------------------------------------------------------------

    def do_request(
        self,
        url: str,
        method: str = "GET",
        data: Any = None,
        headers: dict[str, str] | None = None,
        json: Any = None,
        stream: bool = False,
    ) -> Any:
        """What oras's own methods call: by the same rules."""
        raw = _serialize(json) if json is not None else data
        return self.send(method, url, headers=headers, body=None if raw is None else lambda: raw)

    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        scope: str = "",
    ) -> requests.Response:
        """`send_once`, tried again."""
        return self.retry(
            lambda: self.send_once(method, url, headers=headers, body=body, scope=scope)
        )

    def retry(self, call: Callable[[], requests.Response]) -> requests.Response:
        """The answer of `call`, which is made again while the registry cannot be reached or answers
        with RETRIED, for as long as it asks and patience lasts."""
        end = time.monotonic() + self._patience
        for attempt in range(1, ATTEMPTS + 1):
            pause = FIRST_PAUSE * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
            try:
                answer = call()
                if answer.status_code not in RETRIED:
                    return answer
                pause = asked_pause(answer.headers.get("Retry-After", "").strip()) or pause
                failure = self.error_of(answer)
            except BrokenError as exc:
                failure = RemoteError(f"cannot reach {self.host}", cause=exc.cause)
                failure.__cause__ = exc
            if time.monotonic() + pause > end:
                break
            if attempt < ATTEMPTS:
                _log.info("%s, again in %.1f s (%s)", failure.message, pause, failure.cause)
                self._sleep(pause)
        raise failure

    def send_once(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        scope: str = "",
    ) -> requests.Response:
        """Send with what is known to be accepted, and after a challenge with what it asks for.
        `scope` tells apart requests that need different tokens. The answer has any status but 401;
        its body is not read yet. Raises RemoteError, RemoteDeniedError."""
        key = (scope, "pull" if method in ("GET", "HEAD") else "push")
        sent = dict(headers or {})
        with self._lock:
            known = self._headers.get(key, "")
        answer = self._follow(method, url, sent, body, known)
        if answer.status_code != 401:
            return answer
        challenge = answer.headers.get("WWW-Authenticate", "")
        refused = self.error_of(answer)
        header = self._answer_challenge(challenge, key, known)
        if header and header != known:
            answer = self._follow(method, url, sent, body, header)
            if answer.status_code != 401:
                return answer
            refused = self.error_of(answer)
        with self._lock:
            self._headers.pop(key, None)
        raise refused

    def authorize(self, name: str, tag: str) -> str:
        """The Authorization header that reads this tag of repository `name`; "" where none is
        wanted. Raises RemoteDeniedError."""
        url = f"{self.base}/v2/{name}/manifests/{tag}"
        self.send("HEAD", url, scope=name).close()
        with self._lock:
            return self._headers.get((name, "pull"), "")

    def _follow(
        self, method: str, url: str, headers: dict[str, str], body: Body | None, header: str
    ) -> requests.Response:
        """Send along redirects; only the registry's origin sees `header`."""
        for _ in range(MAX_REDIRECTS):
            sent, url = dict(headers), self._locate_own(url)
            if header and _origin_of(url) == self._origin:
                sent["Authorization"] = header
            answer = self._ask(method, url, sent, body)
            location = answer.headers.get("Location", "")
            if answer.status_code not in REDIRECTS or not location:
                return answer
            answer.close()
            url = self.locate(self._locate_own(url), location)  # it may be known by now
        raise RemoteError(f"{self.host} redirects more than {MAX_REDIRECTS} times")

    def _ask(
        self, method: str, url: str, headers: Mapping[str, str], body: Body | None
    ) -> requests.Response:
        """One exchange; once more by TLS, if the registry is found to speak that."""

        def exchange() -> requests.Response:
            data = None if body is None else body()
            return self._request(method, self._locate_own(url), headers, data)

        try:
            answer = exchange()
            if answer.status_code != 400 or not self._finds_tls(url):
                self._may_be_tls = False
                return answer
            answer.close()
        except BrokenError:
            if not self._finds_tls(url):
                raise
        return exchange()

    def _finds_tls(self, url: str) -> bool:
        """Does the registry speak TLS after all? Then that is what it is asked by from now on."""
        if not self._may_be_tls or urlsplit(url).netloc != urlsplit(self.base).netloc:
            return False
        with self._lock:
            if self.prefix == "http" and speaks_tls(self.base):
                self.prefix = "https"
                self.base = f"https://{urlsplit(self.base).netloc}"
                self._origin = _origin_of(self.base)
        return self.prefix == "https"

    def _locate_own(self, url: str) -> str:
        """A URL of the registry as it is asked by now: made before it was found to speak TLS."""
        parts = urlsplit(url)
        if self.prefix == "https" and (parts.scheme, parts.netloc) == ("http", self.hostname):
            return urlunsplit(parts._replace(scheme="https"))
        return url

    def _request(
        self, method: str, url: str, headers: Mapping[str, str], data: Any
    ) -> requests.Response:
        """Send, once."""
        try:
            answer: requests.Response = self.session.request(
                method,
                url,
                data=data,
                headers=headers,
                stream=True,
                allow_redirects=False,
                verify=self._tls_verify,
                cert=self._certificate if _origin_of(url) == self._origin else None,
            )
        except requests.exceptions.SSLError as exc:
            raise RemoteError(
                f"no trusted TLS with {self.host}",
                cause=_why(exc),
                hint="name its certificate authority with --ca, or check the address",
            ) from exc
        except (requests.exceptions.RequestException, OSError) as exc:
            raise BrokenError(f"cannot reach {self.host}", cause=_why(exc)) from exc
        return answer

    def locate(self, url: str, location: str) -> str:
        """The URL that a `Location` of an answer from `url` means."""
        found = urljoin(url, location)
        scheme = urlsplit(found).scheme
        if scheme not in ("http", "https") or (scheme == "http" and self.prefix == "https"):
            raise RemoteError(f"{self.host} points to {found[:120]}", cause="it is not https")
        return found

    # --- credentials ---------------------------------------------------------------------------

    def _answer_challenge(self, challenge: str, key: _Scope, known: str) -> str:
        """The Authorization header that a challenge asks for, in place of the one that is `known`;
        "" if there is none to give. One thread asks for it, and those that wait get the same."""
        with self._lock:
            found = self._headers.get(key, "")
            if found in ("", known):
                found = self._find_header(challenge)
                if len(self._headers) >= MAX_SCOPE_COUNT:
                    self._headers.clear()
                self._headers[key] = found
            return found

    def _find_header(self, challenge: str) -> str:
        """The same, asked for."""
        scheme = challenge.partition(" ")[0].lower()
        self._find_credentials()
        basic: str = getattr(self.auth, "_basic_auth", "")
        if scheme == "basic":
            return f"Basic {basic}" if basic else ""
        if scheme != "bearer":
            return ""
        asked = oras.auth.utils.parse_auth_header(challenge)
        if not asked.realm:
            return ""
        asked.realm = urljoin(self.base, asked.realm)
        try:
            if basic and self._trusts(asked.realm):
                token = self.auth.request_token(asked)
            else:
                token = self.auth.request_anonymous_token(asked)
        except requests.exceptions.RequestException as exc:
            raise RemoteError(f"token server {asked.realm} fails", cause=_why(exc)) from exc
        except ValueError as exc:
            raise RemoteError(f"token server {asked.realm} does not answer JSON") from exc
        if not token and basic and not self._trusts(asked.realm):
            host = urlsplit(asked.realm).hostname
            raise RemoteDeniedError(
                f"credentials of {self.host} are not sent to {asked.realm}",
                cause="the token server is on another host",
                hint=f"if it is the registry's own, allow it with --token-realm {host}",
            )
        return f"Bearer {token}" if token else ""

    def _trusts(self, realm: str) -> bool:
        """May a token server get the registry's credentials?"""
        parts = urlsplit(realm)
        if parts.scheme != "https" and self.prefix == "https":
            return False
        return parts.hostname in ({urlsplit(self.base).hostname} | self._realms)

    def _find_credentials(self) -> None:
        """Look once into docker's configuration, by each name that it may have for the host."""
        if self._has_looked:
            return
        self._has_looked = True
        names = [self.host, f"https://{self.host}", f"https://{self.host}/v1/"]
        if self.hostname == _API_HOSTS["docker.io"]:
            names = [*_DOCKER_HUB_NAMES, self.hostname]
        try:
            self.auth._auth_config = self._read_config()
            any(self.auth._load_auth(name) for name in names)
        except (ValueError, AttributeError, TypeError, KeyError, OSError) as exc:
            raise UsageError(
                f"docker's configuration has no credentials for {self.host} that can be read",
                cause=str(exc),
            ) from exc

    def _read_config(self) -> dict[str, Any]:
        if self._config is None:
            found: dict[str, Any] = oras.auth.utils.load_configs()
            return found
        if not self._config.is_file():
            return {}
        with self._config.open("rb") as file:
            document = json.load(file)
        keys: dict[str, object] = {"auths": {}, "credsStore": None, "credHelpers": {}}
        return {key: document.get(key) or empty for key, empty in keys.items()}

    # --- answers -------------------------------------------------------------------------------

    def error_of(self, answer: requests.Response) -> LayerkitError:
        """The error that an answer is; closes it."""
        status = answer.status_code
        try:
            said = _read_problem(self.traffic.read(answer, MAX_ERROR_SIZE))
        except LayerkitError:
            said = ""
        finally:
            answer.close()
        place = urlsplit(str(answer.request.url))
        cause = f"status {status} for {answer.request.method} {place.path}" + (
            f": {said}" if said else ""
        )
        if status == 404:
            what = place.path.removeprefix("/v2/")
            return NotFoundError(f"{self.host} does not have {what}", cause=cause)
        if status in (401, 403):
            return RemoteDeniedError(
                f"{self.host} refuses access", cause=cause, hint=f"run 'docker login {self.host}'"
            )
        if status == 413:
            return RemoteLimitError(f"{self.host} finds it too large", cause=cause)
        return RemoteError(f"{self.host} failed", cause=cause)


def _read_problem(raw: bytes) -> str:
    """What an OCI error document says; "" for anything else."""
    try:
        errors = json.loads(raw)["errors"]
        texts = [f"{error.get('code', '')} {error.get('message', '')}".strip() for error in errors]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ""
    return "; ".join(texts)[:500]


def _origin_of(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as exc:
        raise RemoteError(f"{url[:120]} has no valid port") from exc
    return parts.scheme, parts.hostname or "", port or {"https": 443}.get(parts.scheme, 80)


def _why(exc: BaseException) -> str:
    """The innermost reason, which is the one that people can act on."""
    reason = getattr(exc, "args", None)
    inner = reason[0] if reason and isinstance(reason[0], BaseException) else None
    inner = getattr(inner, "reason", None) or inner
    return _why(inner) if isinstance(inner, BaseException) else reason_of(exc)


def _serialize(document: Any) -> bytes:
    try:
        return json.dumps(document).encode()
    except (TypeError, ValueError) as exc:
        raise FormatError("document is not JSON") from exc
