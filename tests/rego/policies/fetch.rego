# Wants the network.
package fetch

import rego.v1

allow if http.send({"method": "get", "url": "http://localhost"}).status_code == 200
