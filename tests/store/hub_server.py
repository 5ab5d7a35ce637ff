#!/usr/bin/env python3
"""A model hub on loopback that serves repositories made from local directories.

    hub_server.py serve REPOS [--port N]   serve REPOS until interrupted, logging to standard error
    hub_server.py fill STORE FILE...       put the files into the xet store; print {file: hash}

REPOS/OWNER/NAME/1, /2, ... are the revisions of OWNER/NAME, oldest first; `main` is the first until
a test moves it. A program uses the class Hub, whose log says who asked for what, so that a test can
assert that nothing was downloaded twice. It can cut a connection in the middle of a file.

Only the routes that the hub's clients use for downloads exist. Content of a xet repository is read
by the client itself from `local://STORE`, a directory that hf_xet takes in place of a server.
`fill` needs hf_xet, everything else only the standard library.
"""
import argparse
import hashlib
import http.server
import json
import pathlib
import re
import socket
import sys
import threading
import time
import urllib.parse

# Files from this size on are in large file storage: named by SHA-256, not by their git hash.
LARGE = 1 << 20
PIECE = 1 << 18
API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<what>revision|tree|xet-read-token)/"
                 r"(?P<rev>[^/]+)")
FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)")


class Blob:
    """One file of a revision, with the names that the hub has for its content."""

    def __init__(self, path, xet):
        self.path, self.size = path, path.stat().st_size
        data = path.read_bytes()
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.large = self.size >= LARGE
        if self.large:
            data = (f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\n"
                    f"size {self.size}\n").encode()
        self.pointer = len(data)
        self.oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        self.etag = self.sha256 if self.large else self.oid
        self.xet = xet.get(str(path)) if self.large else None

    def entry(self, name):
        """The file as an entry of a tree listing."""
        entry = {"type": "file", "oid": self.oid, "size": self.size, "path": name}
        if self.large:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": self.pointer}
        if self.xet:
            entry["xetHash"] = self.xet
        return entry


class Repo:
    """A repository: its revisions by commit, and the commit that `main` is at."""

    def __init__(self, directory, xet):
        self.commits, self.order = {}, []
        for revision in sorted(directory.iterdir(), key=lambda path: int(path.name)):
            files = {path.relative_to(revision).as_posix(): Blob(path, xet)
                     for path in sorted(revision.rglob("*")) if path.is_file()}
            names = json.dumps([str(directory), {name: files[name].oid for name in files}])
            commit = hashlib.sha1(names.encode()).hexdigest()
            self.commits[commit] = files
            self.order.append(commit)
        self.main = self.order[0]

    def commit(self, revision):
        revision = self.main if revision == "main" else revision
        return revision if revision in self.commits else None


class Hub:
    """The server. `log` has a dictionary for each request, in the order in which they ended."""

    def __init__(self, repos, store=None, xet=None, port=0):
        self.store, self.log, self.cuts = store, [], {}
        # Called with (repo, path, blob) before the bytes of a file are sent; a test may wait there.
        self.before_body = lambda repo, path, blob: None
        self.repos = {f"{path.parent.name}/{path.name}": Repo(path, xet or {})
                      for path in sorted(repos.glob("*/*"))}
        hub = self

        class Bound(Handler):
            def __init__(self, *args):
                self.hub = hub
                super().__init__(*args)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Bound)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def cut(self, repo, path, after):
        """End the connection of the next download of this file after `after` bytes."""
        self.cuts[repo, path] = after

    def main(self, repo, number):
        """Move `main` to the revision of this number, from 1."""
        self.repos[repo].main = self.repos[repo].order[number - 1]

    def asked(self, since=0, what=None, repo=None):
        """The requests from number `since` on, of this kind, for this repository."""
        return [entry for entry in self.log[since:] if what in (None, entry["what"])
                and repo in (None, entry["repo"])]


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer()

    def do_HEAD(self):
        self.answer()

    def answer(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        entry = {"what": "other", "method": self.command, "path": path, "repo": None,
                 "range": self.headers.get("Range"), "status": None, "sent": 0,
                 "started": time.monotonic()}
        api, file = API.fullmatch(path), FILE.fullmatch(path)
        if api:
            entry |= {"what": api["what"], "repo": api["repo"]}
        elif file:
            entry |= {"what": self.command.lower(), "repo": file["repo"], "path": file["path"]}
        # A question for the revision is logged at once, for those who wait for two clients.
        if entry["what"] == "revision":
            self.hub.log.append(entry)
        try:
            if api:
                self.api(entry, api)
            elif file:
                self.file(entry, file)
            else:
                self.missing(entry, "RepoNotFound")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            entry["ended"] = time.monotonic()
            if entry["what"] != "revision":
                self.hub.log.append(entry)

    def send(self, entry, status, headers, body=b""):
        entry["status"] = status
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, entry, code, commit=None):
        headers = {"X-Error-Code": code, "X-Error-Message": code}
        if commit:
            headers["X-Repo-Commit"] = commit
        self.send(entry, 404, headers)

    def find(self, entry, match):
        """The repository and the commit of a request, or None after an answer that says so."""
        repo = self.hub.repos.get(match["repo"])
        if repo is None:
            return self.missing(entry, "RepoNotFound")
        commit = repo.commit(match["rev"])
        return (repo, commit) if commit else self.missing(entry, "RevisionNotFound")

    def api(self, entry, match):
        found = self.find(entry, match)
        if found is None:
            return
        repo, commit = found
        files, headers = repo.commits[commit], {"Content-Type": "application/json"}
        if match["what"] == "tree":
            answer = [blob.entry(name) for name, blob in files.items()]
        elif match["what"] == "revision":
            answer = {"_id": commit[:24], "id": match["repo"], "modelId": match["repo"],
                      "sha": commit, "private": False, "gated": False, "disabled": False,
                      "tags": [], "downloads": 0, "likes": 0,
                      "siblings": [{"rfilename": name} for name in files]}
        else:
            where, expiry = f"local://{self.hub.store}", int(time.time()) + 3600
            answer = {"casUrl": where, "accessToken": "none", "exp": expiry}
            headers |= {"X-Xet-Cas-Url": where, "X-Xet-Access-Token": "none",
                        "X-Xet-Token-Expiration": expiry}
        self.send(entry, 200, headers, json.dumps(answer).encode())

    def file(self, entry, match):
        found = self.find(entry, match)
        if found is None:
            return
        repo, commit = found
        blob = repo.commits[commit].get(match["path"])
        if blob is None:
            self.missing(entry, "EntryNotFound", commit)
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes",
                   "Content-Type": "application/octet-stream"}
        if blob.large:
            headers |= {"X-Linked-ETag": f'"{blob.etag}"', "X-Linked-Size": blob.size}
        if blob.xet:
            token = f"{self.hub.url}/api/models/{match['repo']}/xet-read-token/{commit}"
            headers |= {"X-Xet-Hash": blob.xet, "X-Xet-Refresh-Route": token,
                        "Link": f'<{token}>; rel="xet-auth"'}
        self.content(entry, blob, headers)

    def content(self, entry, blob, headers):
        """Answer with the file, or with the part of it that Range asks for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", entry["range"] or "")
        first, last = 0, blob.size - 1
        if asked:
            first, last = int(asked[1]), min(int(asked[2] or last), last)
            headers["Content-Range"] = f"bytes {first}-{last}/{blob.size}"
        if asked and first > last:
            self.send(entry, 416, {"Content-Range": f"bytes */{blob.size}"})
            return
        entry["status"] = 206 if asked else 200
        self.send_response(entry["status"])
        for name, value in (headers | {"Content-Length": last + 1 - first}).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.hub.before_body(entry["repo"], entry["path"], blob)
            self.body(entry, blob, first, last + 1)

    def body(self, entry, blob, first, end):
        cut = self.hub.cuts.pop((entry["repo"], entry["path"]), None)
        stop = end if cut is None else min(end, first + cut)
        with blob.path.open("rb") as file:
            file.seek(first)
            while first < stop:
                piece = file.read(min(PIECE, stop - first))
                self.wfile.write(piece)
                first += len(piece)
                entry["sent"] += len(piece)
        if cut is not None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)


def fill(store, files):
    """Upload the files to the xet store in a directory; return {file: xet hash}."""
    import hf_xet
    pathlib.Path(store).mkdir(parents=True, exist_ok=True)
    session = hf_xet.XetSession()
    with session.new_upload_commit(endpoint=f"local://{store}") as commit:
        handles = {file: commit.start_upload_file(file) for file in files}
    return {file: handle.result().xet_info.hash for file, handle in handles.items()}


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve")
    serve.add_argument("repos", type=pathlib.Path)
    serve.add_argument("--port", type=int, default=0)
    fills = commands.add_parser("fill")
    fills.add_argument("store")
    fills.add_argument("files", nargs="+")
    args = parser.parse_args()
    if args.command == "fill":
        print(json.dumps(fill(args.store, args.files)))
        return
    with Hub(args.repos.resolve(), port=args.port) as hub:
        print(f"HF_ENDPOINT={hub.url}", file=sys.stderr)
        seen = 0
        while True:
            time.sleep(0.2)
            for entry in hub.log[seen:]:
                seen += 1
                print(entry["status"], entry["method"], entry["repo"], entry["path"],
                      entry["range"] or "", file=sys.stderr)


if __name__ == "__main__":
    main()
