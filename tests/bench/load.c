// The load generator: keeps N requests under way on N connections for a measured window, one thread, epoll.
//
// It must never be the bottleneck, so it does little per token: undo the chunks, and compare the body with the
// bytes that every candidate has to send. How far the comparison got tells which tokens have arrived; a token is
// a word with the white space before it. What it prints is one line of JSON.
//
// Between looks at its sockets it sleeps for a `tick`: arrivals are known to that precision, and the server is not
// charged for waking a client, on another core, for each word (real clients are on another machine).
//
// Phases: `ramp` (the connections open one by one, spread evenly), `settle` (warm-up), `window` (measured). Seconds,
// all of them. Who has a stream under way then hangs up.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "http.h"
#include "program.h"

enum { MAX_TOKENS = 1024, TAIL = 4096 };

typedef enum { IDLE, CONNECTING, READING } State;

typedef struct {
    int fd;
    State state;
    Response response;
    size_t at;  // bytes of the body so far
    char tail[TAIL];  // what follows the token events, or the whole body of a plain response
    size_t tail_length;
    int tokens;
    double sent, read;
    double arrived[MAX_TOKENS];
} Connection;

typedef struct { double *values; size_t length, room; } Samples;

static struct {
    int port, connections;
    double period, tick, ramp, settle, window;
    const char *request_file, *events_file, *text_file;
    int server, others;  // roots of process trees; 0: none
    int server_core, load_core;
} options = {.connections = 1, .period = 0.02, .ramp = 1.6, .settle = 1.4, .window = 4,
             .server_core = -1, .load_core = -1};

static char *request, *events, *text;
static size_t request_length, events_length, text_length;
static size_t token_end[MAX_TOKENS];
static int tokens_expected;

static int poller;
static double began, window_from, window_to;
static Samples lateness, first_token, whole;
static long long tokens_in_window, reads_in_window, bytes_in_window, ended_in_window, ended, opened, reconnected;
static long long failed_connect, failed_status, failed_content, failed_short;
static char first_failure[256];

static bool in_window(double t) { return t >= window_from && t < window_to; }

static void add(Samples *samples, double value) {
    if (samples->length == samples->room) {
        samples->room = samples->room ? 2 * samples->room : 1 << 16;
        samples->values = realloc(samples->values, samples->room * sizeof(double));
        if (!samples->values) die("out of memory");
    }
    samples->values[samples->length++] = value;
}

static char *read_file(const char *path, size_t *length) {
    FILE *file = fopen(path, "rb");
    if (!file) die("cannot read %s", path);
    char *content = malloc(1 << 20);
    *length = fread(content, 1, (1 << 20) - 1, file);
    content[*length] = 0;
    fclose(file);
    return content;
}

// Find where each token ends: with an event that is more than white space, which JSON may write as an escape.
static void find_tokens(void) {
    static const char head[] = "data: {\"token\":\"";
    char *event = events;
    while (*event) {
        char *end = strstr(event, "\n\n");
        if (!end || strncmp(event, head, sizeof head - 1)) die("the events file is not token events");
        char *said = event + sizeof head - 1;
        if (*said != ' ' && !(*said == '\\' && strchr("nrt", said[1]))) {
            if (tokens_expected == MAX_TOKENS) die("more than %d tokens", MAX_TOKENS);
            token_end[tokens_expected++] = end + 2 - events;
        }
        event = end + 2;
    }
}

// ---- What the kernel knows of the processes and cores ----

typedef struct { double cpu, waited, rss; } Usage;

static void add_usage(int pid, Usage *usage) {
    char path[64];
    unsigned long pages;
    unsigned long long ran, waited;
    clockid_t clock;
    struct timespec cpu;
    FILE *file;
    // To the nanosecond; /proc/PID/stat counts in hundredths of a second.
    if (!clock_getcpuclockid(pid, &clock) && !clock_gettime(clock, &cpu)) usage->cpu += cpu.tv_sec + cpu.tv_nsec / 1e9;
    snprintf(path, sizeof path, "/proc/%d/schedstat", pid);
    if ((file = fopen(path, "r"))) {
        if (fscanf(file, "%llu %llu", &ran, &waited) == 2) usage->waited += waited / 1e9;
        fclose(file);
    }
    snprintf(path, sizeof path, "/proc/%d/statm", pid);
    if ((file = fopen(path, "r"))) {
        if (fscanf(file, "%*u %lu", &pages) == 1) usage->rss += (double)pages * sysconf(_SC_PAGESIZE);
        fclose(file);
    }
    int child;
    snprintf(path, sizeof path, "/proc/%d/task/%d/children", pid, pid);
    if ((file = fopen(path, "r"))) {
        while (fscanf(file, "%d", &child) == 1) add_usage(child, usage);
        fclose(file);
    }
}

static Usage usage_of(int pid) {
    Usage usage = {0};
    if (pid) add_usage(pid, &usage);
    return usage;
}

static double own_cpu(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

// Return the seconds that a core was busy or taken by the hypervisor since the machine started.
static double core_busy(int core) {
    char line[512], name[16];
    unsigned long long user, nice, system, idle, wait, irq, soft, steal;
    double busy = 0;
    snprintf(name, sizeof name, "cpu%d ", core);
    FILE *file = fopen("/proc/stat", "r");
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, name, strlen(name)) &&
            sscanf(line, "%*s %llu %llu %llu %llu %llu %llu %llu %llu", &user, &nice, &system, &idle, &wait, &irq,
                   &soft, &steal) == 8)
            busy = (double)(user + nice + system + irq + soft + steal) / sysconf(_SC_CLK_TCK);
    if (file) fclose(file);
    return busy;
}

typedef struct { double at, own, server_core, load_core; Usage server, others; } Snapshot;

static Snapshot snapshot(void) {
    return (Snapshot){now(), own_cpu(), core_busy(options.server_core), core_busy(options.load_core),
                      usage_of(options.server), usage_of(options.others)};
}

// ---- One connection ----

static void send_request(Connection *c) {
    c->state = READING;
    await_response(&c->response);
    c->tail_length = c->at = 0;
    c->tokens = 0;
    c->sent = now();
    opened++;
    // A request fits any socket buffer that is empty.
    if (send(c->fd, request, request_length, MSG_NOSIGNAL) != (ssize_t)request_length) c->state = IDLE;
}

static void open_connection(Connection *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(options.port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("no more sockets: %s", strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->state = CONNECTING;
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) {
        failed_connect++;
        close(c->fd);
        c->state = IDLE;
        return;
    }
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event);
}

static void close_connection(Connection *c) {
    close(c->fd);
    c->state = IDLE;
}

static void fail(Connection *c, long long *count, const char *why) {
    ++*count;
    if (!first_failure[0]) {
        // Quoted for JSON: nothing but plain characters.
        size_t length = snprintf(first_failure, sizeof first_failure, "%s after %d tokens: %.*s", why, c->tokens,
                                 120, c->tail_length ? c->tail : c->response.head);
        for (size_t i = 0; i < length && i < sizeof first_failure; i++)
            if (first_failure[i] < ' ' || first_failure[i] == '"' || first_failure[i] == '\\') first_failure[i] = '.';
    }
    close_connection(c);
}

// Note how late each token was. Its due time is one period a token after the anchor, and the anchor is where the
// stream's own earliest token puts it: nothing is forgiven to a stream that starts late and then catches up.
static void note_lateness(Connection *c) {
    if (!options.period || !c->tokens) return;
    double anchor = INFINITY;
    for (int k = 0; k < c->tokens; k++) anchor = fmin(anchor, c->arrived[k] - k * options.period);
    for (int k = 0; k < c->tokens; k++)
        if (in_window(c->arrived[k])) add(&lateness, c->arrived[k] - k * options.period - anchor);
}

static void take_body(void *owner, const char *data, size_t length) {
    Connection *c = owner;
    double t = c->read;
    size_t shared = 0;
    if (c->at < events_length) {
        shared = events_length - c->at < length ? events_length - c->at : length;
        // The mismatch is noticed at the end: the stream then lacks tokens.
        if (memcmp(events + c->at, data, shared)) shared = 0;
        c->at += shared;
        while (c->tokens < tokens_expected && token_end[c->tokens] <= c->at) {
            if (c->tokens == 0 && in_window(t)) add(&first_token, t - c->sent);
            c->arrived[c->tokens++] = t;
            if (in_window(t)) tokens_in_window++;
        }
    }
    size_t rest = length - shared;
    if (rest > TAIL - 1 - c->tail_length) rest = TAIL - 1 - c->tail_length;
    memcpy(c->tail + c->tail_length, data + shared, rest);
    c->tail_length += rest;
    c->tail[c->tail_length] = 0;
}

// Check a response that has ended; ask the next question.
static void finish(Connection *c) {
    static const char done[] = "data: {\"token\":\"\",\"done\":true,\"fullText\":\"";
    note_lateness(c);
    if (c->tokens < tokens_expected || c->at < events_length) return fail(c, &failed_short, "incomplete");
    if (events) {
        if (strncmp(c->tail, done, sizeof done - 1) || strncmp(c->tail + sizeof done - 1, text, text_length) ||
            strcmp(c->tail + c->tail_length - 3, "}\n\n"))
            return fail(c, &failed_content, "no done event");
    } else if (!strstr(c->tail, text)) {
        return fail(c, &failed_content, "no reply");
    }
    ended++;
    if (in_window(c->read)) {
        ended_in_window++;
        add(&whole, c->read - c->sent);
    }
    if (c->response.keep_alive) return send_request(c);
    reconnected++;
    close_connection(c);
    open_connection(c);
}

static void receive(Connection *c, const char *data, size_t length) {
    if (in_window(c->read)) bytes_in_window += length, reads_in_window++;
    Progress progress = receive_response(&c->response, data, length, take_body, c);
    if (progress == ENDLESS_HEAD) return fail(c, &failed_status, "endless head");
    if (c->response.status && c->response.status != 200) return fail(c, &failed_status, "status");
    if (progress == WHOLE) finish(c);
}

static void serve(Connection *c, uint32_t flags) {
    static char buffer[1 << 16];
    if (c->state == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) return fail(c, &failed_connect, "connect");
        if (!(flags & EPOLLOUT)) return;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event);
        return send_request(c);
    }
    ssize_t length = recv(c->fd, buffer, sizeof buffer, 0);
    c->read = now();
    if (length > 0) return receive(c, buffer, length);
    if (length < 0 && errno == EAGAIN) return;
    if (length == 0 && ends_with_connection(&c->response)) return finish(c);
    note_lateness(c);
    fail(c, &failed_short, length ? strerror(errno) : "closed");
}

// ---- The run ----

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_samples(const char *name, Samples *samples) {
    qsort(samples->values, samples->length, sizeof(double), by_size);
    printf("\"%s\": {\"count\": %zu", name, samples->length);
    static const struct { const char *name; double part; } parts[] = {{"p50", .5}, {"p90", .9}, {"p99", .99}, {"max", 1}};
    for (int i = 0; i < 4 && samples->length; i++) {
        // The nearest rank.
        size_t rank = (size_t)ceil(parts[i].part * samples->length);
        printf(", \"%s_ms\": %.3f", parts[i].name, samples->values[rank - 1] * 1000);
    }
    printf("}, ");
}

static void parse_options(int argc, char **argv) {
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *name = argv[i], *value = argv[i + 1];
        if (!strcmp(name, "--port")) options.port = atoi(value);
        else if (!strcmp(name, "--connections")) options.connections = atoi(value);
        else if (!strcmp(name, "--request")) options.request_file = value;
        else if (!strcmp(name, "--events")) options.events_file = value;
        else if (!strcmp(name, "--text")) options.text_file = value;
        else if (!strcmp(name, "--period-ms")) options.period = atof(value) / 1000;
        else if (!strcmp(name, "--tick-ms")) options.tick = atof(value) / 1000;
        else if (!strcmp(name, "--ramp")) options.ramp = atof(value);
        else if (!strcmp(name, "--settle")) options.settle = atof(value);
        else if (!strcmp(name, "--window")) options.window = atof(value);
        else if (!strcmp(name, "--server")) options.server = atoi(value);
        else if (!strcmp(name, "--others")) options.others = atoi(value);
        else if (!strcmp(name, "--server-core")) options.server_core = atoi(value);
        else if (!strcmp(name, "--load-core")) options.load_core = atoi(value);
        else die("unknown option %s", name);
    }
    if (!options.port || !options.request_file || !options.text_file) die("--port, --request and --text are needed");
    request = read_file(options.request_file, &request_length);
    text = read_file(options.text_file, &text_length);
    while (text_length && text[text_length - 1] == '\n') text[--text_length] = 0;
    if (options.events_file) {
        events = read_file(options.events_file, &events_length);
        find_tokens();
    }
}

int main(int argc, char **argv) {
    parse_options(argc, argv);
    Connection *connections = calloc(options.connections, sizeof(Connection));
    poller = epoll_create1(EPOLL_CLOEXEC);
    began = now();
    window_from = began + options.ramp + options.settle;
    window_to = window_from + options.window;
    int started = 0;
    bool first_taken = false;
    Snapshot first = {0};

    for (;;) {
        double t = now();
        if (!first_taken && t >= window_from) first = snapshot(), first_taken = true;
        if (t >= window_to) break;
        while (started < options.connections && t - began >= options.ramp * started / options.connections)
            open_connection(&connections[started++]);
        if (options.tick) {
            struct timespec pause = {0, options.tick * 1e9};
            nanosleep(&pause, NULL);
        }
        struct epoll_event found[4096];
        // All that is there, once: epoll gives the sockets their turns.
        int count = epoll_wait(poller, found, 4096, options.tick ? 0 : 1);
        for (int i = 0; i < count; i++) serve(found[i].data.ptr, found[i].events);
    }
    Snapshot last = snapshot();
    for (int i = 0; i < started; i++)
        if (connections[i].state != IDLE) note_lateness(&connections[i]);

    double seconds = last.at - first.at;
    printf("{\"seconds\": %.4f, \"tokens\": %lld, \"reads\": %lld, \"bytes\": %lld, \"ended\": %lld, ", seconds, tokens_in_window,
           reads_in_window, bytes_in_window, ended_in_window);
    printf("\"all_opened\": %lld, \"all_ended\": %lld, \"reconnected\": %lld, ", opened, ended, reconnected);
    printf("\"failed\": {\"connect\": %lld, \"status\": %lld, \"content\": %lld, \"short\": %lld, \"first\": \"%s\"}, ",
           failed_connect, failed_status, failed_content, failed_short, first_failure);
    print_samples("lateness", &lateness);
    print_samples("first_token", &first_token);
    print_samples("whole", &whole);
    printf("\"load_cpu_s\": %.4f, \"server_cpu_s\": %.6f, \"server_waited_s\": %.4f, \"server_rss\": %.0f, ",
           last.own - first.own, last.server.cpu - first.server.cpu, last.server.waited - first.server.waited,
           last.server.rss);
    printf("\"others_cpu_s\": %.4f, \"server_core_s\": %.2f, \"load_core_s\": %.2f}\n",
           last.others.cpu - first.others.cpu, last.server_core - first.server_core, last.load_core - first.load_core);
    return 0;
}
