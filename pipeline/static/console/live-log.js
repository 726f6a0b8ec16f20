// The output of a running gate as it comes: <pre data-live-log="address" data-ended="words"> is filled by an event stream.
// It keeps the last 400,000 characters, and stays at the end while its reader is there.
(() => {
  "use strict";

  const MOST = 400000;
  const log = document.querySelector("[data-live-log]");
  if (!log || !window.EventSource) return;
  const note = document.getElementById("live-log-note");
  const source = new EventSource(log.dataset.liveLog);

  source.addEventListener("message", (event) => {
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    log.append(JSON.parse(event.data).text);
    while (log.textContent.length > MOST && log.childNodes.length > 1) log.firstChild.remove();
    if (atEnd) log.scrollTop = log.scrollHeight;
  });
  source.addEventListener("end", () => {
    source.close();
    if (note) note.textContent = log.dataset.ended;
    // The verdict stands on the page; it is fetched anew, unless somebody is writing on it.
    if (!document.querySelector("details[data-closes][open]")) setTimeout(() => location.reload(), 700);
  });
})();
