#!/usr/bin/env python3
"""Leaves of a linked module only what the builder needs: code, data, and which of their bytes are addresses."""
import pathlib, sys

KEPT = ("reloc.CODE", "reloc.DATA")


def number(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def main(source, target):
    data = pathlib.Path(source).read_bytes()
    out, at, kept = bytearray(data[:8]), 8, set()
    while at < len(data):
        length, start = number(data, at + 1)
        end = start + length
        if data[at] == 0:
            name_length, name = number(data, start)
            name = data[name : name + name_length].decode()
            if name not in KEPT:
                at = end
                continue
            kept.add(name)
        out += data[at:end]
        at = end
    if kept != set(KEPT):
        sys.exit(f"{source}: it has no relocations; link it with --emit-relocs")
    pathlib.Path(target).write_bytes(out)


main(*sys.argv[1:])
