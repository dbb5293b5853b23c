"Opens every page of _docs in headless Chromium without network, and lists what is broken. Exit 1 if anything is."
import json
import shutil
import sys
import tempfile
from pathlib import Path

from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.support.ui import WebDriverWait

DOCS = Path(__file__).resolve().parents[1] / "_docs"
FLAGS = """--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync
--disable-dev-shm-usage""".split()
# what a loaded page says of itself: [kind, which]
PROBE = """
const bad = [];
for (const i of document.images) if (!i.complete || !i.naturalWidth) bad.push(["picture not loaded", i.src.slice(0, 120)]);
for (const v of document.querySelectorAll("video, audio")) if (v.error || v.networkState == 3) bad.push(["player without media", v.currentSrc || v.outerHTML.slice(0, 120)]);
for (const m of document.querySelectorAll(".math")) if (!m.querySelector(".katex")) bad.push(["equation not rendered", m.textContent.slice(0, 80)]);
for (const m of document.querySelectorAll(".katex-error")) bad.push(["equation with an error", m.title]);
for (const a of document.querySelectorAll("a[href^='#']")) if (a.hash.length > 1 && !document.getElementById(decodeURIComponent(a.hash.slice(1)))) bad.push(["link to a missing place", a.hash]);
const walk = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const n = walk.currentNode;
  if (!n.parentElement.closest("pre, code, script, style, .katex") && /\\$[^$\\s][^$]*\\$|\\\\[([]|:::/.test(n.data)) bad.push(["markup left in the text", n.data.trim().slice(0, 80)]);
}
const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
if (wide > 1) bad.push(["page wider than its window by", wide + " px"]);
return bad;
"""


def browser(profile):
    "Headless Chromium with an empty profile that can reach no host; no driver is looked for outside this machine."
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome")
    for flag in [*FLAGS, "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}"]: options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def requests(driver):
    "Addresses that the page asked for outside its own folder."
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        url = message["params"].get("request", {}).get("url", "") if message["method"] == "Network.requestWillBeSent" else ""
        if url and not url.startswith(("file:", "data:", "blob:", "chrome:")): yield ["request to another host", url]


def missing_links(driver, docs):
    "Links to pages and files of the site that are not there."
    for href in set(driver.execute_script("return [...document.querySelectorAll('a[href], source[src]')].map(a => a.href || a.src)")):
        path = href.split("#")[0].removeprefix("file://")
        if href.startswith("file:") and not Path(path).exists(): yield ["link to nothing", path.removeprefix(str(docs))]


def check(driver, page, docs, width):
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600})
    driver.get(page.as_uri())
    WebDriverWait(driver, 20).until(lambda d: d.execute_script("return document.readyState") == "complete")
    bad = driver.execute_script(PROBE) + [["console", e["message"]] for e in driver.get_log("browser") if e["level"] in ("SEVERE", "WARNING")]
    return bad + [*requests(driver), *missing_links(driver, docs)]


def search(driver, page):
    "Whether the search of a page opened from disk finds something."
    driver.get(page.as_uri())
    driver.execute_script("const i = document.querySelector('.smalldocs-search input'); i.value = 'clip'; i.dispatchEvent(new Event('input'))")
    try: WebDriverWait(driver, 10).until(lambda d: d.execute_script("return document.querySelectorAll('a.search-result').length"))
    except TimeoutException: return [["search", "finds nothing"]]
    return []


def main(docs=DOCS):
    missing = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    if missing: return print(f"docs: pages not checked, {' and '.join(missing)} not installed")
    pages, where = sorted(docs.rglob("*.html")), {}
    with tempfile.TemporaryDirectory() as profile:
        driver = browser(profile)
        try:
            for page in pages:
                for width in (1280, 390):
                    for kind, what in check(driver, page, docs, width) + (search(driver, page) if page == pages[-1] else []): where.setdefault((kind, what), {})[page.relative_to(docs)] = width
        finally: driver.quit()
    for (kind, what), on in sorted(where.items()): print(f"docs: {kind}: {what} (on {', '.join(map(str, [*on][:3]))}{' and more' if len(on) > 3 else ''})")
    print(f"docs: {len(pages)} pages opened in Chromium, {len(where)} things broken")
    sys.exit(len(where) > 0)


if __name__ == "__main__": main()
