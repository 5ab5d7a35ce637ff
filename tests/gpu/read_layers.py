"""Read a safetensors file tensor by tensor, as a program does that computes between layers:

    read_layers.py FILE PAUSE_S

Prints, as JSON, the SHA-256 of the file and how long each tensor took to read.
"""

import hashlib
import json
import sys
import time


def main():
    path, pause = sys.argv[1], float(sys.argv[2])
    hash_, took, total = hashlib.sha256(), [], 0
    with open(path, "rb", buffering=0) as file:
        length = file.read(8)
        header = file.read(int.from_bytes(length, "little"))
        hash_.update(length + header)
        tensors = [t for name, t in json.loads(header).items() if name != "__metadata__"]
        for first, last in sorted(t["data_offsets"] for t in tensors):
            begun = time.monotonic()
            data = bytearray(last - first)
            at, view = 0, memoryview(data)
            while at < len(data):
                read = file.readinto(view[at:])
                if not read:
                    raise SystemExit(f"the file ends {len(data) - at} bytes too early")
                at += read
            took.append(time.monotonic() - begun)
            hash_.update(data)
            total += len(data)
            time.sleep(pause)
    took_ms = sorted(1e3 * t for t in took)
    print(json.dumps({
        "sha256": hash_.hexdigest(),
        "tensors": len(took),
        "median_ms": round(took_ms[len(took_ms) // 2], 2),
        "most_ms": round(took_ms[-1], 2),
        "first_ms": round(1e3 * took[0], 2),
        "read_gbs": round(total / sum(took) / 1e9, 3),
    }))


main()
