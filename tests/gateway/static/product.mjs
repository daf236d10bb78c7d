// Loads a module of gateway/static. It is served to browsers as a module, but to node its name does
// not say so.

import { readFile } from "node:fs/promises";

export async function product(name) {
  const code = await readFile(new URL(`../../../gateway/static/${name}`, import.meta.url), "utf8");
  return import(`data:text/javascript;base64,${Buffer.from(code).toString("base64")}`);
}
