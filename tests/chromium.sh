#!/bin/sh
# Print the path of a Chromium: $CHROMIUM, one on the PATH, Playwright's own; else try to install one.
set -u

found() {
    [ -n "$1" ] && [ -x "$1" ] && echo "$1" && exit 0
}
playwrights_own() {
    python - <<'PY' 2>/dev/null
from playwright.sync_api import sync_playwright

with sync_playwright() as playwright:
    print(playwright.chromium.executable_path)
PY
}
look() {
    # The first two are the same engine without a window's frame: a page costs a quarter of the CPU.
    for name in chromium-headless-shell chrome-headless-shell chromium chromium-browser google-chrome google-chrome-stable; do
        found "$(command -v "$name")"
    done
    found "$(playwrights_own)"
}

if [ -n "${CHROMIUM:-}" ]; then
    found "$CHROMIUM"
    echo "CHROMIUM is $CHROMIUM, expected the path of a Chromium" >&2
    exit 1
fi
look
echo "No Chromium is found: trying Playwright's installer" >&2
python -m playwright install chromium >/dev/null 2>&1
look
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    for name in chromium-headless-shell chromium; do
        echo "No Chromium is found: trying apt-get install $name" >&2
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$name"; } >/dev/null 2>&1
        look
    done
fi
echo "The browser tests need a Chromium: install one (on Debian: apt-get install chromium) or set CHROMIUM to" \
    "its path; make test BROWSER=0 leaves these tests out" >&2
exit 1
