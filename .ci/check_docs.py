"""Opens every page of _docs in headless Chromium without network, at a desk's and at a phone's width, light and dark; plays every player; lists what is broken.

Exit 1 if anything is. Pages are opened from disk, as a reader would; players from a server on this machine, because a page on disk may not read their files."""
import json
import shutil
import sys
import tempfile
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlparse

from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.support.ui import WebDriverWait

DOCS = Path(__file__).resolve().parents[1] / "_docs"
DESK, PHONE = 1280, 390   # pixels
NO_CLIP = {"00bc_hub", "00ca_opensora", "00cb_audioldm", "00da_imagebind", "00db_imagebind_av", "00dc_t5", "01_attention", "01a_dit", "01b_checkpoints", "01c_maps", "03ab_corpora", "03b_buckets", "04_losses", "04aa_masks", "04ab_runs", "04ac_models", "04b_learner", "04c_launch", "04ca_engines", "04cb_memory", "04cc_stages", "06_train_prior", "07a_parts", "09a_metrics", "09aa_i3d", "09ab_audioclip", "09ad_truth", "09ae_page", "09b_javisbench", "11_performance"}   # chapters about networks and machines: no clip carries their idea
SILENT, NO_TRACK = "03_remove.mp4", "04d_ball.mp4"   # players that are silent on purpose: the only source of sound was taken out; stage 0 makes pictures alone
FLAGS = """--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync
--disable-dev-shm-usage --autoplay-policy=no-user-gesture-required""".split() + ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
# what a loaded page says of itself: [kind, which]
PROBE = r"""
const bad = [], main = document.querySelector("main"), name = (e) => (e.currentSrc || e.getAttribute("src") || e.textContent).trim().slice(0, 100);
for (const i of document.images) if (!i.complete || !i.naturalWidth) bad.push(["picture not loaded", name(i)]);
for (const v of document.querySelectorAll("video, audio")) if (v.error || v.networkState == 3) bad.push(["player without media", name(v)]);
for (const m of document.querySelectorAll(".math")) if (!m.querySelector(".katex")) bad.push(["equation not rendered", name(m)]);
for (const m of document.querySelectorAll(".katex-error")) bad.push(["equation with an error", m.title]);
for (const a of document.querySelectorAll("a[href^='#']")) if (a.hash.length > 1 && !document.getElementById(decodeURIComponent(a.hash.slice(1)))) bad.push(["link to a missing place", a.hash]);
const walk = document.createTreeWalker(main, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const n = walk.currentNode;
  if (!n.parentElement.closest("pre, code, script, style, .katex") && /\$[^$\s][^$]*\$|\\[([]|:::|\]\{[#.]/.test(n.data)) bad.push(["markup left in the text", n.data.trim().slice(0, 80)]);
}
const width = document.documentElement.clientWidth, wide = document.documentElement.scrollWidth - width;
if (wide > 1) bad.push(["page wider than its window by", wide + " px"]);
const scrolls = (e) => { for (; e && e != main; e = e.parentElement) if (/auto|scroll/.test(getComputedStyle(e).overflowX) && e.getBoundingClientRect().right <= width + 1) return true; };
for (const e of main.querySelectorAll("pre, table, img, video, p, li, .katex-display"))
  if (e.getBoundingClientRect().right > width + 1 && !scrolls(e)) bad.push(["cut off at the right", name(e)]);
// a player shows nothing where videos do not play (a notebook on GitHub): a picture stands in its cell, or at most two blocks away
for (const v of main.querySelectorAll("video")) {
  let block = v; while (block.parentElement && !block.parentElement.matches("section, main")) block = block.parentElement;
  const near = [block, block.previousElementSibling, block.previousElementSibling?.previousElementSibling, block.nextElementSibling, block.nextElementSibling?.nextElementSibling];
  if (!near.some((b) => b?.querySelector("img, svg"))) bad.push(["player without a picture beside it", name(v)]);
}
const light = (css) => { const [r, g, b] = css.match(/[\d.]+/g).map(Number); return (0.3 * r + 0.59 * g + 0.11 * b) / 255; };
const paper = light(getComputedStyle(document.body).backgroundColor), ink = light(getComputedStyle(main).color), dark = matchMedia("(prefers-color-scheme: dark)").matches;
if ((paper < 0.5) != dark || Math.abs(paper - ink) < 0.5) bad.push([dark ? "not dark in dark mode" : "not light in light mode", `paper ${paper.toFixed(2)}, ink ${ink.toFixed(2)}`]);
if (dark) for (const i of main.querySelectorAll("img")) if (getComputedStyle(i).backgroundColor == "rgba(0, 0, 0, 0)") bad.push(["picture without its own background in the dark", name(i)]);
return bad;
"""
LINKS = "return [...document.querySelectorAll('a[href], video[src], audio[src], source[src]')].map(a => a.href || a.src)"
TURN = "return ['previous', 'next'].map(way => document.querySelector(`.nav-page-${way} a`)?.href ?? null)"
SIDEBAR = "return [...document.querySelectorAll('#quarto-sidebar a[href]')].map(a => [a.href, a.textContent.trim()])"
TOGGLE = "document.querySelector('.quarto-color-scheme-toggle')?.click()"
IS_DARK = "return document.documentElement.classList.contains('quarto-dark')"
FORGET = "localStorage.clear()"   # the choice of light or dark
OPEN_SIDEBAR = "document.querySelector('.quarto-btn-toggle')?.click()"
SIDEBAR_SEEN = "const r = document.querySelector('#quarto-sidebar a[href]')?.getBoundingClientRect(); return !!r && r.left >= 0 && r.right <= innerWidth && r.height > 0"
SEARCH = "const i = document.querySelector('.smalldocs-search input'); i.value = arguments[0]; i.dispatchEvent(new Event('input'))"
FOUND = "return [...document.querySelectorAll('a.search-result')].map(a => a.href)"
PLAY = """
const [at, done] = arguments, v = document.querySelectorAll("main video, main audio")[at], said = {src: decodeURI(v.currentSrc || v.src).replace(/^data:.*/s, "inside the page")};
const within = (ms, work) => Promise.race([work, new Promise((_, no) => setTimeout(() => no(new Error("nothing for " + ms / 1000 + " s")), ms))]);
(async () => {
  try {
    v.muted = false; await within(8000, v.play());
    for (const start = performance.now(); v.currentTime < 0.25 && performance.now() - start < 8000;) await new Promise((ok) => setTimeout(ok, 40));
    Object.assign(said, {time: v.currentTime, decoded: v.webkitAudioDecodedByteCount, width: v.videoWidth}); v.pause();
    const bytes = await (await fetch(v.currentSrc)).arrayBuffer();
    try {
      const sound = await new OfflineAudioContext(1, 1, 16000).decodeAudioData(bytes);
      said.peak = 0; for (let c = 0; c < sound.numberOfChannels; c++) for (const x of sound.getChannelData(c)) said.peak = Math.max(said.peak, Math.abs(x));
    } catch (e) { said.mute = e.message }
  } catch (e) { said.error = e.message }
  done(said);
})();
"""


@contextmanager
def browser():
    "Headless Chromium with an empty profile that can reach no host but this one; no driver is looked for outside this machine."
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or shutil.which("google-chrome")
        for flag in [*FLAGS, f"--user-data-dir={profile}"]: options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        driver.set_script_timeout(40)
        try: yield driver
        finally: driver.quit()


@contextmanager
def served(docs):
    "The site's address on a server of this machine."
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(docs)))
    Thread(target=server.serve_forever, daemon=True).start()
    try: yield f"http://127.0.0.1:{server.server_port}"
    finally: server.shutdown(), server.server_close()


def opened(driver, url, width=DESK, dark=False):
    "Open a page in a window of this width, in light or dark mode, and wait until it is complete."
    for kind in ("browser", "performance"): driver.get_log(kind)   # what the page before it said
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600})
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})
    driver.get(url)
    WebDriverWait(driver, 20).until(lambda d: d.execute_script("return document.readyState") == "complete")


def becomes_true(driver, script, seconds=5):
    try: return WebDriverWait(driver, seconds).until(lambda d: d.execute_script(script))
    except TimeoutException: return None


def requests(driver):
    "Addresses that the page asked for outside its own folder."
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        url = message["params"].get("request", {}).get("url", "") if message["method"] == "Network.requestWillBeSent" else ""
        if url and not url.startswith(("file:", "data:", "blob:", "chrome:")): yield ["request to another host", url]


def missing_links(driver, docs):
    "Links to pages and files of the site that are not there."
    for href in set(driver.execute_script(LINKS)):
        url = urlparse(href)
        if url.scheme == "file" and not Path(unquote(url.path)).exists(): yield ["link to nothing", unquote(url.path).removeprefix(str(docs))]


def looks(driver, page, docs):
    "What is wrong with a page as it is shown, from disk, at both widths and in both modes."
    for width, dark in ((DESK, False), (DESK, True), (PHONE, False), (PHONE, True)):
        opened(driver, page.as_uri(), width, dark)
        yield from driver.execute_script(PROBE)
        yield from (["console", e["message"]] for e in driver.get_log("browser") if e["level"] in ("SEVERE", "WARNING"))
        yield from requests(driver)
        if dark: continue
        yield from missing_links(driver, docs)
        driver.execute_script(TOGGLE)
        if not becomes_true(driver, IS_DARK): yield ["light and dark", "cannot be switched"]
        driver.execute_script(FORGET)
    driver.execute_script(OPEN_SIDEBAR)
    if not becomes_true(driver, SIDEBAR_SEEN): yield ["sidebar", "cannot be opened on a phone"]


def turns(driver, page, order):
    "Whether a page of the sidebar leads to the one before and the one after, and its search to another page."
    opened(driver, page.as_uri())
    at = next((i for i, (href, _) in enumerate(order) if href.split("#")[0] == page.as_uri()), None)
    if at is not None:
        wanted = [order[i][0] if 0 <= i < len(order) else None for i in (at - 1, at + 1)]
        for way, want, have in zip(("previous", "next"), wanted, driver.execute_script(TURN)):
            if want != have: yield [f"link to the {way} page", f"{have and Path(have).name}, expected {want and Path(want).name}"]
    href, title = order[1 if at == 0 else 0] if at is None or at < 2 else order[at - 1]
    driver.execute_script(SEARCH, title.lstrip("0123456789abcdefgh ") or title)
    found = becomes_true(driver, FOUND) or []
    if href not in [f.split("#")[0] for f in found]: yield ["search", f"does not find {title!r}"]


def plays(driver, page, docs, site):
    "Whether every player of a page plays, and is heard."
    opened(driver, f"{site}/{page.relative_to(docs).as_posix()}")
    players = driver.execute_script("return document.querySelectorAll('main video, main audio').length")
    if not players and page.parent.name == "nbs" and page.stem not in NO_CLIP: yield ["chapter without a player", page.stem]
    for at in range(players):
        said = driver.execute_async_script(PLAY, at)
        player, name = f"{said['src'].removeprefix(site)} (player {at + 1})", Path(said["src"]).name
        if said.get("error"): yield ["player does not play", f"{player}: {said['error']}"]
        elif said["time"] < 0.25: yield ["player does not play", f"{player}: stays at {said['time']:.2f} s"]
        elif name == NO_TRACK and said.get("mute"): continue
        elif said.get("mute"): yield ["player without sound", f"{player}: {said['mute']}"]
        elif not said["decoded"]: yield ["player without sound", f"{player}: no byte of sound was decoded"]
        elif (said["peak"] < 0.01) != (name == SILENT): yield ["silent player", f"{player}: its loudest sample is {said['peak']:.4f}"]


def faults(docs, only=None):
    "What is broken on the pages of a site (or on those called `only`): ({(kind, what): [pages]}, pages looked at, players played)."
    pages, where, players = [p for p in sorted(docs.rglob("*.html")) if not only or p.stem in only], {}, 0
    with browser() as driver, served(docs) as site:
        opened(driver, (docs / "index.html").as_uri())
        order = driver.execute_script(SIDEBAR)
        for page in pages:
            for kind, what in [*looks(driver, page, docs), *turns(driver, page, order), *plays(driver, page, docs, site)]:
                on = where.setdefault((kind, what), [])
                if page not in on: on.append(page)
            players += driver.execute_script("return document.querySelectorAll('main video, main audio').length")
    return where, len(pages), players


def main(docs=DOCS):
    missing = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    if missing: return print(f"docs: pages not checked, {' and '.join(missing)} not installed")
    where, pages, players = faults(docs)
    for (kind, what), on in sorted(where.items()):
        names = [str(p.relative_to(docs)) for p in on]
        print(f"docs: {kind}: {what} (on {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''})")
    print(f"docs: {pages} pages opened and {players} players played in Chromium, {len(where)} things broken")
    sys.exit(len(where) > 0)


if __name__ == "__main__": main()
