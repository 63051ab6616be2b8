"""A Hub on loopback with the routes that `huggingface_hub` uses: commits, refs, regular and LFS files."""

import base64
import hashlib
import itertools
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit


TOKEN = "hf_of_the_tests"
LFS_SUFFIXES = (".safetensors", ".onnx", ".data", ".png")


class Hub:
    """State of the server. Requests, as `METHOD path`, that match the regular expression `fail` get an error."""

    def __init__(self):
        self.repositories = {}
        self.blobs = {}
        self.requests = []
        self.fail = None
        self._numbers = itertools.count(1)

    def create(self, name, private=False):
        first = self.commit_id({})
        self.repositories[name] = {
            "private": private,
            "commits": {first: {}},
            "refs": {"main": first},
            "tags": {},
            "messages": [],
        }

    def commit_id(self, files):
        return hashlib.sha1(f"{next(self._numbers)} {sorted(files)}".encode()).hexdigest()

    def find(self, name, revision):
        """Returns the commit of a branch, tag or commit, and its files; `None` if it does not exist."""
        repository = self.repositories.get(name)
        if repository is None:
            return None, None
        revision = repository["refs"].get(revision) or repository["tags"].get(revision) or revision
        return revision, repository["commits"].get(revision)

    def files(self, name, revision="main"):
        return self.find(name, revision)[1]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def reply(self, status, body=b"", **headers):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        for name, value in ({"Content_Length": str(len(content)), "Content_Type": kind} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_error_code(self, status, code, message):
        self.reply(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def handle_request(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        if self.hub.fail and re.search(self.hub.fail, request):
            self.send_error_code(403, "Forbidden", "request fails on purpose")
            return
        writes = self.command in ("POST", "PUT") and not re.match("/lfs/|/api/validate-yaml|.*/paths-info/", path)
        if (writes or path == "/api/whoami-v2") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.send_error_code(401, "InvalidToken", "Invalid username or password.")
            return
        for pattern, method in self.routes:
            if found := re.fullmatch(pattern, request):
                method(self, body, *found.groups())
                return
        self.send_error_code(404, "EntryNotFound", f"no such route: {request}")

    do_GET = do_HEAD = do_POST = do_PUT = handle_request  # noqa: N815 (the base class names them)

    def whoami(self, _):
        self.reply(200, {"type": "user", "name": "someone", "orgs": []})

    def create(self, body):
        given = json.loads(body)
        name = f"{given.get('organization') or 'someone'}/{given['name']}"
        url = f"http://{self.headers['Host']}/{name}"
        if name in self.hub.repositories:
            self.reply(409, {"error": "You already created this model repo", "url": url})
            return
        self.hub.create(name, bool(given.get("private")) or given.get("visibility") == "private")
        self.reply(200, {"url": url, "name": name, "id": name})

    def validate_yaml(self, _):
        self.reply(200, {"errors": [], "warnings": []})

    def repository(self, name, revision="main"):
        """Returns the commit and its files; sends an error if there are none."""
        commit, files = self.hub.find(name, revision)
        if commit is None:
            self.send_error_code(404, "RepoNotFound", "Repository not found")
        elif files is None:
            self.send_error_code(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, files

    def preupload(self, body, name, revision):
        _, files = self.repository(name, revision)
        if files is not None:
            entries = [
                {
                    "path": entry["path"],
                    "uploadMode": "lfs" if entry["path"].endswith(LFS_SUFFIXES) else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for entry in json.loads(body)["files"]
            ]
            self.reply(200, {"files": entries})

    def lfs_batch(self, body, _):
        objects = []
        for entry in json.loads(body)["objects"]:
            if entry["oid"] not in self.hub.blobs:
                entry = entry | {"actions": {"upload": {"href": f"http://{self.headers['Host']}/lfs/{entry['oid']}"}}}
            objects.append(entry)
        self.reply(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            self.reply(400, {"error": "wrong checksum"})
            return
        self.hub.blobs[oid] = body
        self.reply(200)

    def commit(self, body, name, revision):
        _, files = self.repository(name, revision)
        if files is None:
            return
        files, repository = dict(files), self.hub.repositories[name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repository["messages"].append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
        new = self.hub.commit_id(files)
        repository["commits"][new], repository["refs"][revision] = files, new
        self.reply(200, {"commitUrl": f"http://{self.headers['Host']}/{name}/commit/{new}", "commitOid": new})

    def branch(self, body, name, branch):
        commit, files = self.repository(name, json.loads(body or b"{}").get("startingPoint") or "main")
        if files is not None:
            refs = self.hub.repositories[name]["refs"]
            if branch in refs:
                self.reply(409, {"error": "Reference already exists"})
                return
            refs[branch] = commit
            self.reply(200, {})

    def tag(self, body, name, revision):
        commit, files = self.repository(name, revision)
        if files is not None:
            tags, tag = self.hub.repositories[name]["tags"], json.loads(body)["tag"]
            if tag in tags:
                self.reply(409, {"error": "Reference already exists"})
                return
            tags[tag] = commit
            self.reply(200, {})

    def refs(self, _, name):
        repository = self.hub.repositories[name]
        self.reply(
            200,
            {
                kind: [{"name": ref, "ref": f"refs/{ref}", "targetCommit": commit} for ref, commit in entries.items()]
                for kind, entries in (("branches", repository["refs"]), ("tags", repository["tags"]))
            }
            | {"converts": []},
        )

    def info(self, _, name, revision="main"):
        commit, files = self.repository(name, revision or "main")
        if files is not None:
            siblings = [{"rfilename": path} for path in sorted(files)]
            private = self.hub.repositories[name]["private"]
            self.reply(
                200,
                {"id": name, "modelId": name, "sha": commit, "private": private, "siblings": siblings, "tags": []},
            )

    def tree(self, _, name, revision, folder=""):
        _, files = self.repository(name, revision)
        if files is None:
            return
        base = f"{folder}/" if folder else ""
        below = [path for path in sorted(files) if path.startswith(base)]
        if folder and not below:
            self.send_error_code(404, "EntryNotFound", f"{folder} does not exist")
            return
        folders = {str(parent) for path in below for parent in PurePosixPath(path).parents}
        paths = sorted({*below, *(path for path in folders if path.startswith(base) and path != ".")})
        if "recursive=true" not in self.path.lower():
            paths = [path for path in paths if "/" not in path.removeprefix(base)]
        self.reply(200, [self.entry(path, files) for path in paths])

    def paths_info(self, body, name, revision):
        _, files = self.repository(name, revision)
        if files is None:
            return
        asked = parse_qs(body.decode()).get("paths", [])
        known = [path for path in asked if any(f"{other}/".startswith(f"{path}/") for other in files)]
        self.reply(200, [self.entry(path, files) for path in known])

    def entry(self, path, files):
        """Returns the description of a file or folder."""
        if path not in files:
            return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest()}
        content = files[path]
        entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        if path.endswith(LFS_SUFFIXES):
            oid = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
        return entry

    def resolve(self, _, name, revision, path):
        commit, files = self.repository(name, revision)
        if files is None:
            return
        if path not in files:
            self.send_error_code(404, "EntryNotFound", "Entry not found")
            return
        content = files[path]
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked:
            content = content[int(asked[1]) : int(asked[2]) + 1 if asked[2] else None]
        self.reply(
            206 if asked else 200,
            b"" if self.command == "HEAD" else content,
            Content_Length=str(len(content)),
            X_Repo_Commit=commit,
            ETag=f'"{hashlib.sha256(files[path]).hexdigest()}"',
        )

    routes = (
        (r"GET /api/whoami-v2", whoami),
        (r"POST /api/repos/create", create),
        (r"POST /api/validate-yaml", validate_yaml),
        (r"POST /api/models/([^/]+/[^/]+)/preupload/(.+)", preupload),
        (r"POST /api/models/([^/]+/[^/]+)/commit/(.+)", commit),
        (r"POST /api/models/([^/]+/[^/]+)/branch/(.+)", branch),
        (r"POST /api/models/([^/]+/[^/]+)/tag/(.+)", tag),
        (r"POST /([^/]+/[^/]+)\.git/info/lfs/objects/batch", lfs_batch),
        (r"PUT /lfs/(.+)", lfs_put),
        (r"GET /api/models/([^/]+/[^/]+)/refs", refs),
        (r"GET /api/(?:models|datasets)/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", tree),
        (r"POST /api/(?:models|datasets)/([^/]+/[^/]+)/paths-info/(.+)", paths_info),
        (r"GET /api/(?:models|datasets)/([^/]+/[^/]+)(?:/revision/(.+))?", info),
        (r"(?:GET|HEAD) /(?:datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", resolve),
    )


@contextmanager
def serve():
    """Runs an empty Hub; yields it and its address."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
