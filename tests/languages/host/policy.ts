// Everything that a policy may use of the host.
import { Decision, Level, Request, count, data, log, now, random } from "./portcullis";

export function decide(request: Request): Decision {
  const value = data("name");
  count("looked-up", 2);
  log(Level.Warn, "a line");
  if (value === null || now() != 57 || random() == random()) return Decision.deny(500, "not as expected");
  return Decision.deny(403, String.UTF8.decode(value.buffer));
}
