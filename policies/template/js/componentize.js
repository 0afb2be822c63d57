// Makes a component of policy.js: SpiderMonkey, having read the policy already, with nothing of WASI.

import { writeFile } from "node:fs/promises";
import { resolve } from "node:path";
import { componentize } from "@bytecodealliance/componentize-js";

const { component } = await componentize({
  sourcePath: resolve("policy.js"),
  witPath: resolve("wit"),
  worldName: "gate",
  disableFeatures: ["clocks", "fetch-event", "http", "random", "stdio"],
});
await writeFile(process.argv[2], component);
