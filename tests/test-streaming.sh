#!/usr/bin/env bash
# Try both endpoints of a running server: the JSON reply, then the stream, its tokens shown as they arrive.
# usage: tests/test-streaming.sh ORG_ID USER_ID [BASE_URL]
# Needs bash and curl. Exits with 0 only if both replies came whole.
set -u

if [ $# -lt 2 ] || [ $# -gt 3 ]; then
    echo "usage: $0 ORG_ID USER_ID [BASE_URL]" >&2
    exit 2
fi
base=${3:-http://127.0.0.1:3000}
body='{"message": "Hello from the test script"}'

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

ask() {
    curl --silent --show-error --no-buffer --max-time 120 "$base$1" --data "$body" \
        --header 'content-type: application/json' --header "x-org-id: $org" --header "x-user-id: $user"
}
org=$1 user=$2

# The value of a string member of a JSON object on one line, still escaped: member NAME JSON
member() {
    local pattern="\"$1\": ?\"(([^\"\\\\]|\\\\.)*)\""
    [[ $2 =~ $pattern ]] && printf '%s' "${BASH_REMATCH[1]}"
}

# One code point as UTF-8 bytes. (printf's own \u depends on the locale, and bash 3 has none.)
utf8() {
    local c=$1 bytes
    if ((c < 0x80)); then
        bytes=$(printf '\\x%02x' "$c")
    elif ((c < 0x800)); then
        bytes=$(printf '\\x%02x' $((c >> 6 | 0xC0)) $((c & 0x3F | 0x80)))
    elif ((c < 0x10000)); then
        bytes=$(printf '\\x%02x' $((c >> 12 | 0xE0)) $((c >> 6 & 0x3F | 0x80)) $((c & 0x3F | 0x80)))
    else
        bytes=$(printf '\\x%02x' $((c >> 18 | 0xF0)) $((c >> 12 & 0x3F | 0x80)) $((c >> 6 & 0x3F | 0x80)) \
            $((c & 0x3F | 0x80)))
    fi
    printf '%b' "$bytes"
}

# Print a JSON string's characters. The server escapes all that is not ASCII.
unescape() {
    local rest=$1 high low
    while [[ $rest == *\\* ]]; do
        printf '%s' "${rest%%\\*}"
        rest=${rest#*\\}
        case $rest in
        u*)
            high=$((16#${rest:1:4})) rest=${rest:5}
            if ((high >= 0xD800 && high < 0xDC00)) && [[ $rest == \\u* ]]; then
                low=$((16#${rest:2:4})) rest=${rest:6}
                high=$((0x10000 + ((high - 0xD800) << 10) + low - 0xDC00))
            fi
            utf8 "$high"
            ;;
        *)
            case ${rest:0:1} in n) printf '\n' ;; t) printf '\t' ;; r) printf '\r' ;; b) printf '\b' ;;
            f) printf '\f' ;; *) printf '%s' "${rest:0:1}" ;; esac
            rest=${rest:1}
            ;;
        esac
    done
    printf '%s' "$rest"
}

echo "POST /chat"
json=$(ask /chat) || fail "curl could not reach $base"
reply=$(member reply "$json") || fail "$(unescape "$(member message "$json" || echo "$json")")"
echo "$json"
[ -n "$reply" ] || fail "the reply is empty"

echo
echo "POST /chat/stream"
done=no
other=
while IFS= read -r line; do
    case $line in
    'data: {"error":'*) fail "$(unescape "$(member message "$line")")" ;;
    'data: {"token":"","done":true'*) done=yes ;;
    'data: {"token":'*) unescape "$(member token "$line")" ;;
    '' | :*) ;;
    *) other+=$line ;;
    esac
done < <(ask /chat/stream)
echo
[ -z "$other" ] || fail "$(unescape "$(member message "$other" || echo "$other")")"
[ $done = yes ] || fail "the stream ended before it was done"
echo "Stream complete!"
