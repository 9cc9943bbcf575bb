// One HTTP/1.1 response on a socket: its head, and its body with the chunks undone. Both generators have it: the
// bench's, and that of tests/load.

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { HEAD = 4096 };

typedef enum { SIZE, SIZE_REST, DATA, DATA_END, TRAILER } Chunk;
typedef enum { MORE, WHOLE, ENDLESS_HEAD } Progress;

typedef struct {
    char head[HEAD];
    size_t head_length;
    int status;  // 0: the head is not whole yet
    bool chunked, keep_alive;
    long long content_left;  // -1: until the connection closes
    Chunk chunk;
    long long chunk_left;
    bool trailer_line;
} Response;

typedef void Take(void *owner, const char *data, size_t length);

static void await_response(Response *r) { r->head_length = r->status = 0; }

static bool ends_with_connection(const Response *r) { return r->status && !r->chunked && r->content_left < 0; }

// Take the chunks apart; return whether the last one has come.
static inline bool dechunk(Response *r, const char *p, const char *end, Take *take, void *owner) {
    while (p < end) {
        char b = *p;
        switch (r->chunk) {
        case SIZE:
            p++;
            if (b >= '0' && b <= '9') r->chunk_left = r->chunk_left * 16 + b - '0';
            else if ((b | 32) >= 'a' && (b | 32) <= 'f') r->chunk_left = r->chunk_left * 16 + (b | 32) - 'a' + 10;
            else r->chunk = SIZE_REST, p--;
            break;
        case SIZE_REST:
            p++;
            if (b == '\n') {
                r->chunk = r->chunk_left ? DATA : TRAILER;
                r->trailer_line = false;
            }
            break;
        case DATA: {
            long long length = end - p < r->chunk_left ? end - p : r->chunk_left;
            take(owner, p, length);
            p += length;
            r->chunk_left -= length;
            if (!r->chunk_left) r->chunk = DATA_END;
            break;
        }
        case DATA_END:
            p++;
            if (b == '\n') r->chunk = SIZE;
            break;
        case TRAILER:
            p++;
            if (b == '\n' && !r->trailer_line) return true;
            if (b == '\n') r->trailer_line = false;
            else if (b != '\r') r->trailer_line = true;
        }
    }
    return false;
}

// Take what has come; `take` is given what is of the body.
static inline Progress receive_response(Response *r, const char *data, size_t length, Take *take, void *owner) {
    if (!r->status) {
        size_t part = length < HEAD - 1 - r->head_length ? length : HEAD - 1 - r->head_length;
        memcpy(r->head + r->head_length, data, part);
        size_t before = r->head_length;
        r->head_length += part;
        r->head[r->head_length] = 0;
        char *end = strstr(r->head, "\r\n\r\n");
        if (!end) return r->head_length == HEAD - 1 ? ENDLESS_HEAD : MORE;
        size_t head_bytes = end + 4 - r->head - before;
        end[2] = 0;
        char *size = strcasestr(r->head, "\r\ncontent-length:");
        r->status = strncmp(r->head, "HTTP/1.", 7) ? -1 : atoi(r->head + 8);
        r->chunked = strcasestr(r->head, "\r\ntransfer-encoding: chunked") != NULL;
        r->keep_alive = !strncmp(r->head, "HTTP/1.1", 8) && !strcasestr(r->head, "\r\nconnection: close") &&
                        (r->chunked || size);
        r->content_left = size ? atoll(size + 17) : -1;
        r->chunk = SIZE;
        r->chunk_left = 0;
        data += head_bytes;
        length -= head_bytes;
    }
    if (r->chunked) return dechunk(r, data, data + length, take, owner) ? WHOLE : MORE;
    if (length) take(owner, data, length);
    return r->content_left >= 0 && (r->content_left -= length) <= 0 ? WHOLE : MORE;
}
