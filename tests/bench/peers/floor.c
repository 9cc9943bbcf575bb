// The floor: the same stream from C, one thread, epoll, a heap of due times, one send() a word.
//
// What is left is what the kernel takes for sending. It wakes at whole milliseconds, as uvloop and Node do, and so
// serves the words of one millisecond together. Minimal HTTP, as in bare.py; nothing here is production code.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_STREAMS = 8192, MAX_WORDS = 1024 };

typedef struct {
    int fd, next;
    double due;
    int place;  // in the heap; 0: not in it
    char received[4096];
    size_t length;
} Stream;

static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
                           "Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n";
static char text[8192], *frames[MAX_WORDS];
static size_t frame_length[MAX_WORDS];
static int words;
static double period;
static Stream *heap[MAX_STREAMS + 1];
static int heap_size;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void put(int place, Stream *stream) {
    heap[place] = stream;
    stream->place = place;
}

static void sift(int place) {
    Stream *stream = heap[place];
    for (; place > 1 && heap[place / 2]->due > stream->due; place /= 2) put(place, heap[place / 2]);
    for (int child; (child = 2 * place) <= heap_size; place = child) {
        if (child < heap_size && heap[child + 1]->due < heap[child]->due) child++;
        if (heap[child]->due >= stream->due) break;
        put(place, heap[child]);
    }
    put(place, stream);
}

static void schedule(Stream *stream, double due) {
    stream->due = due;
    if (!stream->place) put(++heap_size, stream);
    sift(stream->place);
}

static void unschedule(Stream *stream) {
    int place = stream->place;
    if (!place) return;
    stream->place = 0;
    Stream *last = heap[heap_size--];
    if (last == stream) return;
    put(place, last);
    sift(place);
}

static void uuid(char *out) {
    uint16_t r[8];
    getrandom(r, sizeof r, 0);
    sprintf(out, "%04x%04x-%04x-4%03x-a%03x-%04x%04x%04x", r[0], r[1], r[2], r[3] & 0xfff, r[4] & 0xfff, r[5], r[6], r[7]);
}

static void load_reply(const char *path) {
    FILE *file = fopen(path, "r");
    if (!file || !fgets(text, sizeof text, file)) exit(2);
    fclose(file);
    text[strcspn(text, "\n")] = 0;
    char *copy = strdup(text), events[512];
    for (char *word = strtok(copy, " "); word && words < MAX_WORDS; word = strtok(NULL, " "), words++) {
        snprintf(events, sizeof events, "%sdata: {\"token\":\"%s\",\"done\":false}\n\n",
                 words ? "data: {\"token\":\" \",\"done\":false}\n\n" : "", word);
        frame_length[words] = asprintf(&frames[words], "%zx\r\n%s\r\n", strlen(events), events);
    }
}

// Write one word; return whether there is another.
static bool write_next(Stream *stream) {
    send(stream->fd, frames[stream->next], frame_length[stream->next], MSG_NOSIGNAL);
    if (++stream->next < words) return true;
    char done[9000], chunk[9100], chat[64], message[64];
    uuid(chat);
    uuid(message);
    int length = snprintf(done, sizeof done,
                          "data: {\"token\":\"\",\"done\":true,\"fullText\":\"%s\",\"chat_id\":\"%s\",\"message_id\":\"%s\"}\n\n",
                          text, chat, message);
    length = snprintf(chunk, sizeof chunk, "%x\r\n%s\r\n0\r\n\r\n", length, done);
    send(stream->fd, chunk, length, MSG_NOSIGNAL);
    return false;
}

static void receive(Stream *stream) {
    ssize_t length = recv(stream->fd, stream->received + stream->length, sizeof stream->received - 1 - stream->length, 0);
    if (length <= 0) {
        unschedule(stream);
        close(stream->fd);
        free(stream);
        return;
    }
    stream->received[stream->length += length] = 0;
    char *body = strstr(stream->received, "\r\n\r\n");
    if (!body) return;
    char *size = strcasestr(stream->received, "content-length:");
    if (stream->received + stream->length - (body + 4) < (size ? atoi(size + 15) : 0)) return;
    stream->length = stream->next = 0;
    send(stream->fd, head, sizeof head - 1, MSG_NOSIGNAL);
    schedule(stream, now() + period);
}

int main(int argc, char **argv) {
    if (argc != 4) return fprintf(stderr, "usage: floor PORT PERIOD_MS REPLY\n"), 2;
    period = atof(argv[2]) / 1000;
    load_reply(argv[3]);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 2048)) return 2;
    int poller = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &listener};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        struct epoll_event found[512];
        int wait_ms = heap_size ? fmax(0, ceil((heap[1]->due - now()) * 1000)) : -1;
        int count = epoll_wait(poller, found, 512, wait_ms);
        for (int i = 0; i < count; i++) {
            if (found[i].data.ptr == &listener) {
                int fd;
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    Stream *stream = calloc(1, sizeof *stream);
                    stream->fd = fd;
                    event = (struct epoll_event){.events = EPOLLIN, .data.ptr = stream};
                    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
                }
            } else {
                receive(found[i].data.ptr);
            }
        }
        double t = now();
        // One word for each due stream, then back to epoll: unpaced streams take turns.
        for (int turns = heap_size; turns > 0 && heap_size && heap[1]->due <= t; turns--) {
            Stream *stream = heap[1];
            double due = period ? stream->due + period : now();
            if (write_next(stream)) schedule(stream, due);
            else unschedule(stream);
        }
    }
}
