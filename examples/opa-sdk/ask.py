#!/usr/bin/env python3
"""Asks Portcullis as OPA is asked, with PyPI's opa-python-client. Nothing here knows that it is not OPA."""
import sys

from opa_client.opa import OpaClient

client = OpaClient(host="127.0.0.1", port=int(sys.argv[1]), timeout=10)


def asked(principal, method, path):
    request = {"attributes": {"source": {"principal": principal}, "request": {"http": {"method": method, "path": path}}}}
    return client.query_rule(input_data=request, package_path="gate", rule_name="answer")["result"]


try:
    client.wait_for_ready(timeout=3)
    questions = [
        ("spiffe://shop.example/ops", "DELETE", "/admin/users", True),
        ("spiffe://shop.example/web", "GET", "/catalog/4711", True),
        ("spiffe://shop.example/web", "POST", "/orders", False),
        ("spiffe://elsewhere.example/ops", "GET", "/admin", False),
    ]
    for principal, method, path, expected in questions:
        result = asked(principal, method, path)
        print(f"{principal} {method} {path}: {result}")
        assert result is expected, f"expected {expected}"
finally:
    client.close_connection()
