/* blast: an HTTP/1.1 load generator whose own cost is close to nothing.
 *
 * Bodies are dropped inside the kernel (recv with MSG_TRUNC), so that on a small machine the server under test gets nearly
 * all of the processor.
 *
 *   blast -p PORT [-c CONNECTIONS] [-d SECONDS] [-n REQUESTS] [-1] [-i] [-r BYTES/S] [-x BYTES:SIZE] [-H 'Name: value']
 *         [-f FILE] [PATH...]
 *
 * -c  connections, each asking for the paths in turn        -f  further paths, one a line
 * -d  seconds to run, or until -n requests are done         -1  a new connection for each request
 * -r  each connection reads at most so many bytes a second  -x  asks for so many bytes at random places of a blob of SIZE
 * -i  opens the connections, asks once on each, then leaves them idle for the time that is left
 *
 * Prints one line of JSON: requests, errors (connections that broke or answers that ended short), answers that were not
 * 2xx, bytes of bodies, seconds, and the milliseconds to the first and to the last byte (p50, p99, most).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_MAX = 16384, CHUNK = 1 << 20, LATENCIES = 4000000, OPEN_FILES = 1 << 16 };

typedef struct {
  int fd, path, in_head, length, status;
  int64_t left; /* of the body; -1: nobody knows */
  double asked, first, may_read;
  char *head;
} Conn;

static int port, ep, once, idle, path_count, path_room, next_path;
static char **paths;
static char headers[4096];
static int64_t most_requests = INT64_MAX, started, done, errors, refused, bytes, rate, piece, whole;
static double *first_byte, *last_byte;
static int64_t latencies;
static char sink[CHUNK];

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void add_path(const char *path) {
  if (path_count == path_room) paths = realloc(paths, (path_room = path_room * 2 + 16) * sizeof *paths);
  paths[path_count++] = strdup(path);
}

static void add_paths_of(const char *file) {
  char line[4096];
  FILE *f = fopen(file, "r");
  if (!f) { perror(file); exit(2); }
  while (fgets(line, sizeof line, f)) {
    line[strcspn(line, "\n")] = 0;
    if (*line) add_path(line);
  }
  fclose(f);
}

static int dial(void) {
  int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
  if (fd < 0) return -1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (connect(fd, (void *)&to, sizeof to)) { close(fd); return -1; }
  fcntl(fd, F_SETFL, O_NONBLOCK);
  return fd;
}

/* True if a request went out. */
static int ask(Conn *c) {
  char request[8192], range[96] = "";
  if (started >= most_requests) return 0;
  started++;
  if (piece) {
    int64_t from = (int64_t)(((uint64_t)random() << 31 | (uint64_t)random()) % (uint64_t)(whole - piece));
    snprintf(range, sizeof range, "Range: bytes=%ld-%ld\r\n", (long)from, (long)(from + piece - 1));
  }
  int n = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUser-Agent: blast\r\n%s%s%s\r\n",
                   paths[next_path], port, range, headers, once ? "Connection: close\r\n" : "");
  next_path = (next_path + 1) % path_count;
  c->in_head = 1;
  c->length = 0;
  c->asked = now();
  c->first = 0;
  return write(c->fd, request, n) == n;
}

static void finished(Conn *c) {
  done++;
  if (c->status < 200 || c->status > 299) refused++;
  if (latencies < LATENCIES) {
    first_byte[latencies] = c->first - c->asked;
    last_byte[latencies++] = now() - c->asked;
  }
}

/* 1: go on; 0: this connection is done with; -1: it broke. */
static int readable(Conn *c) {
  for (;;) {
    if (c->in_head) {
      ssize_t n = recv(c->fd, c->head + c->length, HEAD_MAX - 1 - c->length, MSG_PEEK);
      if (n == 0) return -1;
      if (n < 0) return errno == EAGAIN ? 1 : -1;
      if (!c->first) c->first = now();
      c->head[c->length + n] = 0;
      char *end = strstr(c->head, "\r\n\r\n");
      if (!end) {
        if (c->length + n >= HEAD_MAX - 1) return -1;
        recv(c->fd, c->head + c->length, n, 0);
        c->length += n;
        continue;
      }
      int total = (int)(end + 4 - c->head);
      recv(c->fd, sink, total - c->length, 0);
      *end = 0;
      c->status = atoi(c->head + 9);
      char *announced = strcasestr(c->head, "\r\ncontent-length:");
      c->left = announced ? atoll(announced + 17) : -1;
      c->in_head = 0;
    } else if (c->left == 0) {
      finished(c);
      if (idle) { c->in_head = 1; c->length = 0; return 1; }
      if (once) return 0;
      return ask(c);
    } else {
      size_t want = CHUNK;
      if (c->left > 0 && (int64_t)want > c->left) want = c->left;
      if (rate) {
        double t = now();
        if (t < c->may_read) return 1;
        if ((int64_t)want > rate / 10 + 1) want = rate / 10 + 1;
        c->may_read = t + (double)want / rate;
      }
      ssize_t n = recv(c->fd, sink, want, c->left > 0 ? MSG_TRUNC : 0);
      if (n == 0) return -1;
      if (n < 0) return errno == EAGAIN ? 1 : -1;
      bytes += n;
      if (c->left > 0) c->left -= n;
      else if (n >= 5 && !memcmp(sink + n - 5, "0\r\n\r\n", 5)) c->left = 0;
    }
  }
}

/* True if it is open and has asked. */
static int begin(Conn *c) {
  if (started >= most_requests) return 0;
  c->fd = dial();
  if (c->fd >= 0 && ask(c)) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &event);
    return 1;
  }
  errors++;
  if (c->fd >= 0) close(c->fd);
  return 0;
}

static double at(double *sorted, double share) { return latencies ? sorted[(int64_t)((latencies - 1) * share)] * 1e3 : 0; }

int main(int argc, char **argv) {
  double seconds = 5;
  int count = 1, open = 0, option;
  while ((option = getopt(argc, argv, "p:c:d:n:1ir:x:H:f:")) != -1) {
    if (option == 'p') port = atoi(optarg);
    else if (option == 'c') count = atoi(optarg);
    else if (option == 'd') seconds = atof(optarg);
    else if (option == 'n') most_requests = atoll(optarg);
    else if (option == '1') once = 1;
    else if (option == 'i') idle = 1;
    else if (option == 'r') rate = atoll(optarg);
    else if (option == 'x' && sscanf(optarg, "%ld:%ld", &piece, &whole) == 2 && piece < whole) continue;
    else if (option == 'H' && strlen(headers) + strlen(optarg) + 3 < sizeof headers) strcat(strcat(headers, optarg), "\r\n");
    else if (option == 'f') add_paths_of(optarg);
    else return 2;
  }
  for (int i = optind; i < argc; i++) add_path(argv[i]);
  if (!path_count || !port) { fprintf(stderr, "blast: -p PORT and at least one PATH\n"); return 2; }
  struct rlimit files = {OPEN_FILES, OPEN_FILES};
  setrlimit(RLIMIT_NOFILE, &files);
  first_byte = malloc(LATENCIES * sizeof *first_byte);
  last_byte = malloc(LATENCIES * sizeof *last_byte);
  ep = epoll_create1(0);
  Conn *all = calloc(count, sizeof *all);
  double begun = now();
  for (int i = 0; i < count && started < most_requests; i++) {
    all[i].head = malloc(HEAD_MAX);
    open += begin(&all[i]);
  }
  struct epoll_event events[256];
  while (open > 0 && now() - begun < seconds && (idle || done + errors < most_requests)) {
    int n = epoll_wait(ep, events, 256, 50);
    for (int i = 0; i < n; i++) {
      Conn *c = events[i].data.ptr;
      int state = readable(c);
      if (state == 1) continue;
      close(c->fd);
      open--;
      errors += state < 0;
      open += begin(c);
    }
    if (rate && n > 0) usleep(2000);
  }
  double took = now() - begun;
  qsort(first_byte, latencies, sizeof *first_byte, ascending);
  qsort(last_byte, latencies, sizeof *last_byte, ascending);
  printf("{\"requests\":%ld,\"errors\":%ld,\"refused\":%ld,\"bytes\":%ld,\"seconds\":%.4f,"
         "\"first_ms\":[%.3f,%.3f,%.3f],\"last_ms\":[%.3f,%.3f,%.3f]}\n",
         (long)done, (long)errors, (long)refused, (long)bytes, took, at(first_byte, .5), at(first_byte, .99), at(first_byte, 1),
         at(last_byte, .5), at(last_byte, .99), at(last_byte, 1));
  return errors || refused;
}
