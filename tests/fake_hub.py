"""A hub on loopback: repositories in memory, as much of its HTTP interface as downloads and uploads use."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

TOKEN = "hf_test"
SHA = "a" * 40


class Hub(ThreadingHTTPServer):
    """Repositories: name -> path -> content. Private ones and writing need the token; requests are noted."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.private, self.requests = {}, set(), []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, document=b"", **headers):
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def repo(self, name):
        """Its files; None after an error reply."""
        hub, known = self.server, self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if name not in hub.repos or (name in hub.private and not known):
            self.reply(401 if not known else 404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        return hub.repos[name]

    def do_GET(self):
        path = urlsplit(self.path).path
        self.server.requests.append((self.command, path))
        if found := re.fullmatch(r"/api/models/(\w+/\w+)/(revision|tree)/(\w+)", path):
            files = self.repo(found[1])
            if files is None:
                return
            if found[3] not in ("main", SHA):
                self.reply(404, {"error": "no such revision"}, X_Error_Code="RevisionNotFound")
            elif found[2] == "tree":
                self.reply(200, [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in files.items()
                ])  # fmt: skip
            else:
                self.reply(200, {"id": found[1], "sha": SHA, "siblings": [{"rfilename": name} for name in files]})
        elif found := re.fullmatch(r"/(\w+/\w+)/resolve/(\w+)/(.+)", path):
            files = self.repo(found[1])
            if files is None:
                return
            if found[3] not in files:
                self.reply(404, b"", X_Error_Code="EntryNotFound")
                return
            content = files[found[3]]
            self.reply(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=SHA)
        else:
            self.reply(404, {"error": f"unknown {path}"})

    do_HEAD = do_GET

    def do_POST(self):
        path = urlsplit(self.path).path
        self.server.requests.append((self.command, path))
        lines = self.rfile.read(int(self.headers["Content-Length"])).splitlines()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.reply(401, {"error": "Invalid credentials"})
        elif path == "/api/repos/create":
            asked = json.loads(lines[0])
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            if name in self.server.repos:
                self.reply(409, {"error": "exists", "url": f"http://hub/{name}"})
                return
            self.server.repos[name] = {}
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(name)
            self.reply(200, {"url": f"{self.server.address}/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self.reply(200, {"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/(\w+/\w+)/preupload/main", path):
            asked = json.loads(lines[0])["files"]
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]
            self.reply(200, {"files": files})
        elif found := re.fullmatch(r"/api/models/(\w+/\w+)/commit/main", path):
            for line in map(json.loads, lines):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.repos[found[1]][line["value"]["path"]] = content
            url = f"{self.server.address}/{found[1]}/commit/{SHA}"
            self.reply(200, {"commitUrl": url, "commitOid": SHA, "success": True})
        else:
            self.reply(404, {"error": f"unknown {path}"})


@contextmanager
def running():
    """A hub, with its `address`."""
    with Hub() as hub:
        host, port = hub.server_address
        hub.address = f"http://{host}:{port}"
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()
