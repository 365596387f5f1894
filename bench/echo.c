/* The floor of every server of framed requests: it replies to each frame with a frame of a fixed size.
 *
 *   echo SOCKET REPLY_BYTES
 *
 * It reads frames (a length as u32, big-endian, then that number of bytes), ignores their contents, and writes for each
 * one a frame with REPLY_BYTES zeros, one write a frame. With one frame a round (as in `floors`) this is the cost of the
 * kernel's path: no single-threaded server on a Unix socket can be much faster with frames of the same sizes.
 * It has one thread with epoll and ends on a signal. A reply that does not fit into the socket's buffer waits.
 *
 * Build: gcc -O2 -Wall -o echo echo.c
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct connection {
    int fd;
    unsigned char head[4];
    int head_bytes;  /* bytes of the length prefix read so far */
    long missing;    /* bytes still missing of the frame being read */
};

static void die(const char *what) { perror(what); exit(1); }

static int listen_on(const char *path) {
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof un.sun_path) { fprintf(stderr, "%s: too long for a socket's path\n", path); exit(2); }
    strcpy(un.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0) die("socket");
    if (bind(fd, (struct sockaddr *)&un, sizeof un)) die(path);
    if (listen(fd, 1024)) die("listen");
    return fd;
}

/* Count the frames that end within these n bytes. */
static long count_frames(struct connection *c, const unsigned char *p, long n) {
    long whole = 0;
    while (n > 0) {
        if (c->head_bytes < 4) {
            c->head[c->head_bytes++] = *p++, n--;
            if (c->head_bytes == 4)
                c->missing = (long)c->head[0] << 24 | c->head[1] << 16 | c->head[2] << 8 | c->head[3];
        } else {
            long take = n < c->missing ? n : c->missing;
            p += take, n -= take, c->missing -= take;
        }
        if (c->head_bytes == 4 && c->missing == 0) whole++, c->head_bytes = 0;
    }
    return whole;
}

/* Return 0, or -1 if the peer has closed the connection. */
static int write_all(int fd, const char *p, size_t n) {
    while (n > 0) {
        ssize_t done = write(fd, p, n);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return -1;
        p += done, n -= done;
    }
    return 0;
}

/* Return 0, or -1 if the connection has ended. */
static int serve(struct connection *c, const char *reply, size_t reply_bytes) {
    static unsigned char input[1 << 18];
    ssize_t n = read(c->fd, input, sizeof input);
    if (n <= 0) return -1;
    for (long whole = count_frames(c, input, n); whole > 0; whole--)
        if (write_all(c->fd, reply, reply_bytes)) return -1;
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 3) { fprintf(stderr, "usage: echo SOCKET REPLY_BYTES\n"); return 2; }
    long payload = atol(argv[2]);
    char *reply = calloc(1, 4 + payload);
    for (int i = 0; i < 4; i++) reply[i] = (char)(payload >> (24 - 8 * i));
    int listener = listen_on(argv[1]), poll = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(poll, EPOLL_CTL_ADD, listener, &e)) die("epoll_ctl");
    for (;;) {
        struct epoll_event ready[256];
        int n = epoll_wait(poll, ready, 256, -1);
        if (n < 0 && errno != EINTR) die("epoll_wait");
        for (int k = 0; k < n; k++) {
            struct connection *c = ready[k].data.ptr;
            if (!c) {
                c = calloc(1, sizeof *c);
                if ((c->fd = accept(listener, NULL, NULL)) < 0) { free(c); continue; }
                struct epoll_event in = {.events = EPOLLIN, .data.ptr = c};
                epoll_ctl(poll, EPOLL_CTL_ADD, c->fd, &in);
            } else if (serve(c, reply, 4 + payload)) {
                close(c->fd), free(c);
            }
        }
    }
}
