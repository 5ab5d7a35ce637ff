#!/usr/bin/env python3
"""Count the machine instructions of a round of decoding:  count.py [--arch sm_90] [--list]

    pip install nvidia-cuda-nvcc-cu12==12.9.86 nvidia-cuda-nvdisasm
    tests/gpu/count.py

For every loop of src/gpu/kernel.ptx that decodes a round (it has at least four ballots and stores
to memory), prints how many instructions the shortest way around it has, which is the way without
escapes, errors and refills of the ring, and how many go to which unit; then the masks by which one
recognises the layout, such as 0x801f801f for the bits of a plane of BF16. --list prints the
instructions. `docs/GPU.md` says what follows from them.
"""

import argparse
import heapq
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

PTX = pathlib.Path(__file__).resolve().parents[2] / "src/gpu/kernel.ptx"
# Units by the instructions that they execute; everything else is the integer pipe's.
UNITS = {
    "multiply": r"(U?IMAD|IDP|HFMA|FFMA|FMUL|FADD)\b",
    "load and store": r"(LD|ST|ATOM|SHFL|RED)",
    "population count": r"(U?POPC|MUFU|I2F|F2I|FLO|BREV)",
    "control": r"(BRA|BSSY|BSYNC|WARPSYNC|EXIT|NOP|CALL|RET|BAR|YIELD|BREAK|BMOV)",
    "uniform": r"(U[A-Z]|R2UR|S2UR)",
}
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")


def tool(name):
    """A program of CUDA: from the path, or from this Python's packages."""
    found = shutil.which(name)
    if not found:
        places = [pathlib.Path(p) / "nvidia" for p in sys.path if "site-packages" in p]
        found = next((p for place in places for p in place.glob(f"*/bin/{name}")), None)
    if not found:
        raise SystemExit(f"count: {name} was not found: see --help")
    return str(found)


def functions(arch):
    """The disassembled kernels: the name, and the instructions with the labels before them."""
    with tempfile.TemporaryDirectory() as work:
        cubin = f"{work}/kernel.cubin"
        subprocess.run([tool("ptxas"), f"-arch={arch}", str(PTX), "-o", cubin], check=True)
        sass = subprocess.run([tool("nvdisasm"), "-c", cubin], check=True, capture_output=True,
                              text=True).stdout
    name, code, labels = None, [], {}
    for line in sass.splitlines():
        if line.startswith(".text."):
            if code:
                yield name, code, labels
            name, code, labels = line[6:].rstrip(":"), [], {}
        elif label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(code)
        elif found := INSTRUCTION.search(line):
            code.append((found[1] or "", found[2], found[3].strip()))
    if code:
        yield name, code, labels


def successors(code, labels, i):
    guard, operation, operands = code[i]
    target = re.search(r"\((\.L\w+)\)", operands)
    # BRA.DIV leads to what is done when threads of a warp are apart, which they are not.
    if operation.startswith("BRA") and target and operation != "BRA.DIV":
        yield labels[target[1]]
        if not guard and not re.search(r"\bU?!?U?P\d", operands):
            return
    elif operation.startswith(("EXIT", "RET")) and not guard:
        return
    if i + 1 < len(code):
        yield i + 1


def shortest(code, labels, begin, end):
    """The shortest way from one instruction to another, without the first one."""
    before, queue = {}, [(0, begin, None)]
    while queue:
        length, at, previous = heapq.heappop(queue)
        if at == end and length > 0:
            way = [at]
            while previous is not None and previous != begin:
                way.append(previous)
                previous = before[previous]
            return way[::-1]
        if at not in before:
            before[at] = previous
            for following in successors(code, labels, at):
                heapq.heappush(queue, (length + 1, following, at))
    return None


def rounds(code, labels):
    """The shortest ways from a store to memory back to it that take the ballots of a round."""
    ballots = [i for i, one in enumerate(code) if one[1] == "POPC"]
    found = {}
    for store in (i for i, one in enumerate(code) if one[1].startswith("STG")):
        ways = []
        for ballot in ballots:
            there = shortest(code, labels, store, ballot)
            back = there and shortest(code, labels, ballot, store)
            if back and sum(code[i][1].startswith("VOTE") for i in there + back) >= 4:
                ways.append(there + back)
        if ways:
            way = min(ways, key=len)
            found.setdefault(frozenset(way), way)
    return found.values()


def unit(operation):
    return next((name for name, pattern in UNITS.items() if re.match(pattern, operation)),
                "integer")


def masks(code, way):
    """The masks that merge planes and symbols."""
    operands = (code[i][2] for i in way if code[i][1].startswith("LOP3"))
    return sorted({mask for one in operands for mask in re.findall(r"0x[0-9a-f]{6,8}", one)})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--list", action="store_true", help="print the instructions")
    args = parser.parse_args()
    for name, code, labels in functions(args.arch):
        ways = rounds(code, labels)
        if "decode" in name and not ways:
            raise SystemExit(f"count: no loop found in {name}")
        for way in ways:
            units = {}
            for i in way:
                units[unit(code[i][1])] = units.get(unit(code[i][1]), 0) + 1
            print(f"{name}, {args.arch}: {len(way)}:",
                  ", ".join(f"{count} {what}" for what, count in sorted(units.items())),
                  *masks(code, way))
            if args.list:
                print(*(f"    {' '.join(code[i])}" for i in way), sep="\n")


if __name__ == "__main__":
    main()
