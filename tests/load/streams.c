// The generator of streams, in C: keeps N of them under way, one thread, epoll. One that has ended is followed by
// another on its connection; one that has failed by another a second later, or when the server says.
//
// It is told by options, and by a file of requests: for each address as many as there are users, each ended by NUL.
// Each second it prints a line of JSON: what has come since the last one (figures.py). It ends after `--seconds`, with
// SIGTERM, and when nobody reads what it prints; its last lines are the replies that it leaves running.

#define _GNU_SOURCE
#include <errno.h>
#include <math.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "../bench/http.h"
#include "../bench/program.h"

enum { MAX_TARGETS = 2, BUCKETS = 1200, KINDS = 32, KIND = 80, LINE = 512 };

static const double AGAIN_S = 1, LOOK_S = 0.01, TICK_S = 1, ANSWER_S = 2;

typedef enum { IDLE, CONNECTING, READING } State;

typedef struct {
    State state;
    int fd, target, user;
    Response response;
    char line[LINE];  // its beginning; of a refusal, the body's
    size_t line_length;
    bool is_done;
    char error[KIND];  // of an error event
    double asked, word, heard, again;  // 0: not yet
} Stream;

typedef struct { unsigned counts[BUCKETS]; double max; } Times;

typedef struct {
    Times first, gaps;
    long long replies, words;
    struct { char name[KIND]; long long count; } failures[KINDS];
} Figures;

static struct {
    int streams, targets, users;
    double ramp, seconds, silence;
    const char *addresses[MAX_TARGETS], *ports[MAX_TARGETS];
} options;

static struct addrinfo *addresses[MAX_TARGETS];
static char **requests;
static Figures figures[MAX_TARGETS];
static int poller;
static double now_s;
static bool is_over;
static volatile sig_atomic_t is_stopped;

static void add(Times *times, double value) {
    int bucket = log(fmax(value * 1e6, 1)) / log(1.02);
    times->counts[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
    times->max = fmax(times->max, value);
}

// ---- One stream ----

static void hang_up(Stream *s) {
    if (s->state != IDLE) close(s->fd);
    s->state = IDLE;
}

static void fail(Stream *s, double again_s, const char *format, ...) {
    char kind[KIND];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(kind, KIND, format, arguments);
    va_end(arguments);
    for (char *p = kind; *p; p++)
        // Quoted for JSON: nothing but plain characters.
        if (*p < ' ' || *p > '~' || *p == '"' || *p == '\\') *p = '.';
    Figures *f = &figures[s->target];
    int i = 0;
    while (i < KINDS - 1 && f->failures[i].count && strcmp(f->failures[i].name, kind)) i++;
    strcpy(f->failures[i].name, i == KINDS - 1 ? "others" : kind);
    f->failures[i].count++;
    hang_up(s);
    s->again = now_s + again_s;
}

static void ask(Stream *s) {
    const char *request = requests[s->target * options.users + s->user];
    size_t length = strlen(request);
    s->state = READING;
    s->line_length = 0;
    s->is_done = false;
    s->word = 0;
    s->error[0] = 0;
    await_response(&s->response);
    // A request fits any socket buffer that is empty.
    if (send(s->fd, request, length, MSG_NOSIGNAL) != (ssize_t)length) fail(s, AGAIN_S, "closed without an answer");
}

static void open_stream(Stream *s) {
    struct addrinfo *to = addresses[s->target];
    int one = 1;
    s->asked = s->heard = now_s;
    s->fd = socket(to->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (s->fd < 0) return fail(s, AGAIN_S, "%s", strerror(errno));
    setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    s->state = CONNECTING;
    if (connect(s->fd, to->ai_addr, to->ai_addrlen) && errno != EINPROGRESS)
        return fail(s, AGAIN_S, "%s", strerror(errno));
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.ptr = s};
    epoll_ctl(poller, EPOLL_CTL_ADD, s->fd, &event);
}

// Copy a string of JSON to its closing quote, as it stands.
static void copy_string(char *to, const char *from) {
    size_t length = strcspn(from, "\"");
    snprintf(to, KIND, "%.*s", (int)(length < KIND ? length : KIND - 1), from);
}

static void note_word(Stream *s) {
    Figures *f = &figures[s->target];
    if (s->word) add(&f->gaps, now_s - s->word);
    else add(&f->first, now_s - s->asked);
    s->word = now_s;
    f->words++;
}

static void take_line(Stream *s) {
    static const char token[] = "data: {\"token\":\"", error[] = "data: {\"error\":\"";
    s->line[s->line_length] = 0;
    if (!strncmp(s->line, error, sizeof error - 1)) return copy_string(s->error, s->line + sizeof error - 1);
    if (strncmp(s->line, token, sizeof token - 1)) return;
    const char *said = s->line + sizeof token - 1;
    if (!strncmp(said, "\",\"done\":true", 13)) s->is_done = true;
    // White space is no word; JSON may write it as an escape.
    while (*said == ' ' || (*said == '\\' && said[1] && strchr("nrt", said[1]))) said += *said == ' ' ? 1 : 2;
    if (*said && *said != '"') note_word(s);
}

static void take_body(void *owner, const char *data, size_t length) {
    Stream *s = owner;
    for (const char *end = data + length; data < end;) {
        const char *stop = s->response.status == 200 ? memchr(data, '\n', end - data) : NULL;
        size_t part = (stop ? stop : end) - data, room = LINE - 1 - s->line_length;
        memcpy(s->line + s->line_length, data, part < room ? part : room);
        s->line_length += part < room ? part : room;
        if (stop) {
            take_line(s);
            s->line_length = 0;
        }
        data += part + (stop ? 1 : 0);
    }
}

static void refuse(Stream *s) {
    char name[KIND] = "";
    s->line[s->line_length] = 0;
    char *error = strstr(s->line, "\"error\":"), *after = strcasestr(s->response.head, "\r\nretry-after:");
    if (error && (error = strchr(error + 8, '"'))) copy_string(name, error + 1);
    fail(s, after ? fmax(atof(after + 14), AGAIN_S) : AGAIN_S, name[0] ? "%d %s" : "%d", s->response.status, name);
}

static void finish(Stream *s) {
    if (s->response.status != 200) return refuse(s);
    if (s->error[0]) return fail(s, AGAIN_S, "error event: %s", s->error);
    if (!s->is_done) return fail(s, AGAIN_S, "ended without done");
    figures[s->target].replies++;
    if (is_over) return hang_up(s);
    if (s->response.keep_alive) {
        s->asked = s->heard = now_s;
        return ask(s);
    }
    hang_up(s);
    open_stream(s);
}

static void serve(Stream *s, uint32_t flags) {
    static char buffer[1 << 16];
    if (s->state == IDLE) return;
    now_s = now();
    if (s->state == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) return fail(s, AGAIN_S, "%s", strerror(error));
        if (!(flags & EPOLLOUT)) return;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = s};
        epoll_ctl(poller, EPOLL_CTL_MOD, s->fd, &event);
        return ask(s);
    }
    ssize_t length = recv(s->fd, buffer, sizeof buffer, 0);
    if (length < 0 && errno == EAGAIN) return;
    if (length > 0) {
        s->heard = now_s;
        Progress progress = receive_response(&s->response, buffer, length, take_body, s);
        if (progress == ENDLESS_HEAD) fail(s, AGAIN_S, "a head that does not end");
        if (progress == WHOLE) finish(s);
    } else if (!s->response.status) {
        fail(s, AGAIN_S, "closed without an answer");
    } else if (!length && ends_with_connection(&s->response)) {
        finish(s);
    } else {
        fail(s, AGAIN_S, "broken off");
    }
}

// ---- The run ----

static void print_times(const char *name, Times *times) {
    const char *comma = "";
    printf("\"%s\": {\"max_s\": %.6f, \"counts\": {", name, times->max);
    for (int i = 0; i < BUCKETS; i++)
        if (times->counts[i]) printf("%s\"%d\": %u", comma, i, times->counts[i]), comma = ", ";
    printf("}}, ");
}

static void print_tick(const Stream *streams) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double cpu = usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
                 (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    printf("{\"cpu_s\": %.4f, \"figures\": [", cpu);
    for (int target = 0; target < options.targets; target++) {
        Figures *f = &figures[target];
        int open = 0;
        for (int i = target; i < options.streams; i += options.targets) open += streams[i].state != IDLE;
        printf("%s{\"open\": %d, \"replies\": %lld, \"words\": %lld, ", target ? ", " : "", open, f->replies, f->words);
        print_times("first", &f->first);
        print_times("gaps", &f->gaps);
        printf("\"failures\": {");
        for (int i = 0; i < KINDS - 1 && f->failures[i].count; i++)
            printf("%s\"%s\": %lld", i ? ", " : "", f->failures[i].name, f->failures[i].count);
        if (f->failures[KINDS - 1].count) printf(", \"others\": %lld", f->failures[KINDS - 1].count);
        printf("}}");
    }
    printf("]}\n");
    fflush(stdout);
    memset(figures, 0, sizeof figures);
}

static bool awaits_answers(const Stream *streams) {
    for (int i = 0; i < options.streams; i++)
        if (streams[i].state == READING && !streams[i].response.status) return true;
    return false;
}

static void serve_some(void) {
    struct epoll_event found[1024];
    int count = epoll_wait(poller, found, 1024, LOOK_S * 1000);
    for (int i = 0; i < count; i++) serve(found[i].data.ptr, found[i].events);
    now_s = now();
}

// Ask no more, and wait a little for the answers that have not begun: they name the replies.
static void end(Stream *streams) {
    double ended_s = now_s;
    is_over = true;
    for (int i = 0; i < options.streams; i++)
        if (streams[i].state == CONNECTING) hang_up(&streams[i]);
    while (now_s - ended_s < ANSWER_S && awaits_answers(streams)) serve_some();
}

static void print_left(const Stream *streams) {
    static const char header[] = "\r\nx-message-id: ";
    for (int i = 0; i < options.streams; i++) {
        const Stream *s = &streams[i];
        if (s->state != READING || s->response.status != 200 || s->is_done) continue;
        const char *found = strcasestr(s->response.head, header);
        if (!found) continue;
        const char *id = found + sizeof header - 1;
        size_t length = strcspn(id, "\r");
        // In need of no quotes.
        if (!length || length >= KIND || strcspn(id, "\"\\\t ") < length) continue;
        printf("{\"stream\": %d, \"reply\": \"%.*s\"}\n", i, (int)length, id);
    }
    fflush(stdout);
}

// Begin those that are to begin, and give up those that are silent.
static void look(Stream *streams, double began_s) {
    for (int i = 0; i < options.streams; i++) {
        Stream *s = &streams[i];
        double begins_s = began_s + options.ramp * i / options.streams;
        if (s->state == IDLE && now_s >= s->again && now_s >= begins_s) open_stream(s);
        else if (s->state != IDLE && now_s - s->heard > options.silence)
            fail(s, AGAIN_S, "silent for %g s", options.silence);
    }
}

static void read_requests(const char *path) {
    FILE *file = fopen(path, "rb");
    int count = options.targets * options.users;
    requests = calloc(count, sizeof *requests);
    for (int i = 0; i < count; i++) {
        size_t room = 0;
        if (!file || getdelim(&requests[i], &room, 0, file) < 0)
            die("%s holds %d requests, expected %d", path, i, count);
    }
    fclose(file);
}

static void parse_options(int argc, char **argv) {
    const char *file = NULL;
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *name = argv[i], *value = argv[i + 1];
        if (!strcmp(name, "--streams")) options.streams = atoi(value);
        else if (!strcmp(name, "--users")) options.users = atoi(value);
        else if (!strcmp(name, "--seconds")) options.seconds = atof(value);
        else if (!strcmp(name, "--ramp")) options.ramp = atof(value);
        else if (!strcmp(name, "--silence")) options.silence = atof(value);
        else if (!strcmp(name, "--requests")) file = value;
        else if (options.targets < MAX_TARGETS && !strcmp(name, "--address"))
            options.addresses[options.targets] = value;
        else if (options.targets < MAX_TARGETS && !strcmp(name, "--port"))
            options.ports[options.targets++] = value;
        else die("unknown option %s", name);
    }
    if (!file) die("--requests is needed");
    read_requests(file);
    struct addrinfo numeric = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM};
    for (int i = 0; i < options.targets; i++) {
        int error = getaddrinfo(options.addresses[i], options.ports[i], &numeric, &addresses[i]);
        if (error) die("%s: %s", options.addresses[i], gai_strerror(error));
    }
}

static void stop(int number) { is_stopped = number; }

int main(int argc, char **argv) {
    parse_options(argc, argv);
    signal(SIGTERM, stop);
    Stream *streams = calloc(options.streams, sizeof *streams);
    for (int i = 0; i < options.streams; i++) {
        streams[i].target = i % options.targets;
        streams[i].user = i / options.targets % options.users;
    }
    poller = epoll_create1(EPOLL_CLOEXEC);
    double began_s = now_s = now(), looked_s = 0, ticked_s = began_s;
    while (!is_stopped && now_s - began_s < options.seconds) {
        serve_some();
        if (now_s - looked_s >= LOOK_S) look(streams, began_s), looked_s = now_s;
        if (now_s - ticked_s >= TICK_S) print_tick(streams), ticked_s = now_s;
    }
    print_tick(streams);
    end(streams);
    print_left(streams);
    return 0;
}
