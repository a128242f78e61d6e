// Begins the page: a form where the node asks for a token and none was given, otherwise everything there is to see.

import { get, heard } from "./api.js";
import { startConsole } from "./overview.js";
import { showSignIn } from "./signin.js";

async function begin(sentence) {
  let access;
  try {
    access = await get("/admin/api/v1/access");
  } catch {
    setTimeout(begin, 1000, sentence); // the page came from this node a moment ago
    return;
  }
  heard.onUnauthorized = () => {};
  if (access.admitted) startConsole(access, begin);
  else showSignIn(sentence, begin);
}

begin();
