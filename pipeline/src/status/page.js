"use strict";
// Puts a new page's content into this one every five seconds; without it the page is as it was loaded.
const wait = 5000;
async function refresh() {
  const note = document.getElementById("note");
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" }, cache: "no-store" });
    if (!answer.ok) throw new Error();
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.querySelector("main").replaceWith(page.querySelector("main"));
    note.textContent = "renewed at " + new Date().toLocaleTimeString();
    note.className = "soft";
  } catch {
    note.textContent = "nginx does not answer; what is shown is old";
    note.className = "bad";
  }
  setTimeout(refresh, wait);
}
setTimeout(refresh, wait);
