#!/usr/bin/env python3
"""Writes cases/*.yaml and cases/*.wasm from cases.txt: what the OPA named by OPA_BIN gives, and what it compiles.

    OPA_BIN=/usr/local/bin/opa tests/rego/make.py

Each case is a line `name | expression`. The YAML files have the format of OPA's own suite; the module beside each holds
all its cases behind one entrypoint, `conformance/main`, which allows with the results as metadata: by name, each in an
array of its own, without what is undefined.
"""
import json, os, pathlib, re, shutil, subprocess, sys, tarfile, tempfile

here = pathlib.Path(__file__).resolve().parent
opa = os.environ.get("OPA_BIN") or sys.exit("OPA_BIN is not set: it names the `opa` to compile and to compare with")
MAIN = 'main := {"allow": true, "dynamic_metadata": {note: [value] | some note, value in result}}'


def run(*arguments, check=True, cwd=None):
    done = subprocess.run([opa, *arguments], capture_output=True, text=True, cwd=cwd)
    if check and done.returncode:
        sys.exit(f"{arguments}: {done.stdout}{done.stderr}")
    return done.stdout


def module(package, body):
    return f"package {package}\n\nimport rego.v1\n\n{body}\n"


def result(source):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "p.rego")
        path.write_text(source)
        answer = json.loads(run("eval", "--format", "json", "--data", str(path), "data.test.p"))
        if "errors" in answer:
            sys.exit(f"{source}\n{answer}")
        return [one["expressions"][0]["value"] for one in answer.get("result", [])]


def family(name, cases, version):
    lines = [f"# Written by tests/rego/make.py with OPA {version}.", "cases:"]
    rules = []
    for note, expression in cases:
        source = module("test", f"p := {expression}")
        results = [{"x": value} for value in result(source)]
        lines += [f"  - note: {json.dumps(f'{name}/{note}')}", "    query: data.test.p = x", "    modules:", "      - |"]
        lines += [f"        {line}".rstrip() for line in source.splitlines()]
        lines += [f"    want_result: {json.dumps(results, ensure_ascii=False, sort_keys=True)}"]
        rules.append(f"result[{json.dumps(f'{name}/{note}')}] := {expression}")
    (here / "cases" / f"{name}.yaml").write_text("\n".join(lines) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        path, bundle = pathlib.Path(folder, "p.rego"), pathlib.Path(folder, "b.tar.gz")
        path.write_text(module("conformance", "\n".join([MAIN, *rules])))
        # OPA writes the names of files into its module, so they are always the same.
        run("build", "-t", "wasm", "-e", "conformance/main", "-o", str(bundle), path.name, cwd=folder)
        with tarfile.open(bundle) as tar:
            wasm = tar.extractfile("/policy.wasm").read()
        (here / "cases" / f"{name}.wasm").write_bytes(wasm)
    print(f"{name}: {len(cases)} cases, module of {len(wasm)} bytes")


def capabilities():
    """OPA's own, and the builtins that Portcullis adds to them."""
    both = json.loads(run("capabilities", "--current"))
    both["builtins"] += json.loads((here / "../../policies/rego/capabilities.json").read_text())["builtins"]
    return json.dumps(both)


def build(name, entrypoints):
    with tempfile.TemporaryDirectory() as folder:
        bundle = pathlib.Path(folder, "b.tar.gz")
        entries = [part for entrypoint in entrypoints for part in ("-e", entrypoint)]
        if name == "tables":
            known = pathlib.Path(folder, "capabilities.json")
            known.write_text(capabilities())
            entries += ["--capabilities", str(known)]
        run("build", "-t", "wasm", *entries, "-o", str(bundle), f"{name}.rego", cwd=here / "policies")
        with tarfile.open(bundle) as tar:
            (here / "policies" / f"{name}.wasm").write_bytes(tar.extractfile("/policy.wasm").read())
    # One as the bundle that OPA writes, with its data.
    if name == "rbac":
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(here / "policies/rbac.rego", folder)
            shutil.copy(here / "policies/rbac.json", pathlib.Path(folder, "data.json"))
            run("build", "-t", "wasm", "-e", entrypoints[0], "-o", str(here / "policies/rbac.tar.gz"), "-b", ".", cwd=folder)


POLICIES = {
    "rbac": ["app/rbac/allow", "app/rbac/user_is_granted"],
    "envoy": ["envoy/authz/answer"],
    "results": ["results/answer"],
    "conflict": ["conflict/allow"],
    "world": ["world/answer"],
    "fetch": ["fetch/allow"],
    "canary": ["canary/answer"],
    "families": ["families/answer"],
    "tables": ["tables/answer"],
}


def main():
    version = re.search(r"Version: (\S+)", run("version")).group(1)
    families = {}
    for line in (here / "cases.txt").read_text().splitlines():
        if line.startswith("## "):
            current = families.setdefault(line[3:].strip(), [])
        elif line.strip() and not line.startswith("#"):
            note, expression = line.split(" | ", 1)
            current.append((note.strip(), expression.strip()))
    for name, cases in families.items():
        family(name, cases, version)
    for name, entrypoints in POLICIES.items():
        build(name, entrypoints)
    print(f"{sum(map(len, families.values()))} cases")


main()
