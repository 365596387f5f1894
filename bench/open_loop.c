/* An open-loop load generator: it sends requests at a fixed rate, even if earlier requests are not answered yet.
 *
 *   open_loop SOCKET REQUEST_FILE REPLY_BYTES|frames ACTIVE IDLE RATE SECONDS
 *
 * ACTIVE connections send in turn. IDLE further connections are open; each sent one request before the timing. The
 * latency of a request counts from the moment at which it was due, so it includes waiting for slow earlier replies (no
 * coordinated omission; the idea is wrk2's). Prints, in microseconds: p50 p99 p999 max, and the number of replies.
 *
 * Build: gcc -O2 -Wall -o open_loop open_loop.c
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define QUEUE 4096 /* the maximum of unanswered requests on one connection */

struct connection {
    int fd;
    long received;  /* bytes of the reply that is being read */
    long expected;  /* its length, after the prefix is read */
    unsigned char head[4];
    unsigned first, next;  /* the ends of the queue below, modulo QUEUE */
    double *due;
};

static char request[1 << 16], reply[1 << 16];
static size_t request_bytes;
static long reply_bytes; /* 0: frames */
static float *took_us;
static long answered, room;

static void die(const char *what) { perror(what); exit(1); }

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void dial(struct connection *c, const char *path) {
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    strncpy(un.sun_path, path, sizeof un.sun_path - 1);
    c->fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (c->fd < 0) die("socket");
    if (connect(c->fd, (struct sockaddr *)&un, sizeof un)) die("connect");
}

static void send_one(struct connection *c, double due) {
    if (c->next - c->first >= QUEUE) { fprintf(stderr, "the server cannot keep up with this rate\n"); exit(1); }
    c->due[c->next++ % QUEUE] = due;
    if (write(c->fd, request, request_bytes) != (ssize_t)request_bytes) die("write");
}

static void whole_reply(struct connection *c) {
    double due = c->due[c->first++ % QUEUE];
    if (answered < room) took_us[answered] = (now() - due) * 1e6;
    answered++;
    c->received = 0;
}

/* Read the available bytes and count the complete replies. */
static void take(struct connection *c) {
    ssize_t got = read(c->fd, reply, sizeof reply);
    if (got <= 0) { fprintf(stderr, "the server closed a connection\n"); exit(1); }
    for (char *p = reply; got > 0;) {
        if (!reply_bytes && c->received < 4) {
            c->head[c->received++] = *p++, got--;
            if (c->received == 4)
                c->expected = 4 + ((long)c->head[0] << 24 | c->head[1] << 16 | c->head[2] << 8 | c->head[3]);
            continue;
        }
        long expected = reply_bytes ? reply_bytes : c->expected, part = expected - c->received;
        if (part > got) part = got;
        p += part, got -= part, c->received += part;
        if (c->received == expected) whole_reply(c);
    }
}

static void open_all(struct connection *all, int count, const char *path) {
    for (int i = 0; i < count; i++) {
        dial(&all[i], path);
        all[i].due = malloc(QUEUE * sizeof(double));
        send_one(&all[i], now());
        while (all[i].first != all[i].next) take(&all[i]);
    }
    answered = 0;
}

/* Read replies until this moment. */
static void wait_until(int poll, double moment) {
    struct epoll_event ready[256];
    for (;;) {
        double left = moment - now();
        if (left < 0) left = 0;
        struct timespec timeout = {(time_t)left, (long)((left - (time_t)left) * 1e9)};
        int n = epoll_pwait2(poll, ready, 256, &timeout, NULL);
        for (int k = 0; k < n; k++) take(ready[k].data.ptr);
        if (now() >= moment) return;
    }
}

int main(int argc, char **argv) {
    if (argc != 8) { fprintf(stderr, "usage: open_loop SOCKET REQUEST_FILE REPLY_BYTES|frames ACTIVE IDLE RATE SECONDS\n"); return 2; }
    FILE *file = fopen(argv[2], "rb");
    if (!file) die(argv[2]);
    request_bytes = fread(request, 1, sizeof request, file);
    reply_bytes = strcmp(argv[3], "frames") ? atol(argv[3]) : 0;
    int active = atoi(argv[4]), idle = atoi(argv[5]);
    double rate = atof(argv[6]);
    long total = rate * atof(argv[7]);
    room = total, took_us = calloc(total + 1, sizeof *took_us);
    prctl(PR_SET_TIMERSLACK, 1L);

    struct connection *all = calloc(active + idle, sizeof *all);
    open_all(all, active + idle, argv[1]);
    int poll = epoll_create1(0);
    for (int i = 0; i < active + idle; i++) {
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = &all[i]};
        epoll_ctl(poll, EPOLL_CTL_ADD, all[i].fd, &e);
    }
    double begin = now() + 0.01;
    for (long sent = 0; sent < total; sent++) {
        double due = begin + sent / rate;
        if (due > now()) wait_until(poll, due);
        else if (sent % 64 == 0) wait_until(poll, 0); /* late: read replies all the same */
        send_one(&all[sent % active], due);
    }
    for (double end = now() + 10; answered < total && now() < end;) wait_until(poll, now() + 0.001);
    if (answered < total) { fprintf(stderr, "%ld of %ld answered\n", answered, total); return 1; }
    qsort(took_us, total, sizeof *took_us, by_value);
    printf("%.1f %.1f %.1f %.1f %ld\n", took_us[total / 2], took_us[(long)(total * 0.99)], took_us[(long)(total * 0.999)], took_us[total - 1], answered);
    return 0;
}
