/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What these programs know of the kernel: its stable interface to programs on sockets' addresses, and numbers of
 * helpers (include/uapi/linux/bpf.h). Nothing else is included.
 */
#ifndef KUBE_PROXY_KERNEL_H
#define KUBE_PROXY_KERNEL_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SECTION(name) __attribute__((section(name), used))
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define NULL ((void *)0)

/* The hook goes on with the address as it is now. */
#define PASS 1
#define TCP 6
#define UDP 17

/* The beginning of struct bpf_sock, as far as `state`. */
struct socket {
	u32 unused[18];
	u32 state;
};

/* TCP_ESTABLISHED, which UDP's sockets that have a peer are in, too. */
#define CONNECTED 1

/* By this name the kernel knows it. */
struct bpf_spin_lock {
	u32 value;
};

/* struct bpf_sock_addr. Addresses and ports in network byte order, a port in the lower half. */
struct socket_address {
	u32 user_family;
	u32 user_ip4;
	u32 user_ip6[4];
	u32 user_port;
	u32 family;
	u32 type;
	u32 protocol;
	u32 msg_src_ip4;
	u32 msg_src_ip6[4];
	u32 reserved;
	struct socket *sk;
};

/* The beginning of struct bpf_iter__udp: one of the sockets of UDP of a network namespace; none at the end. */
struct each_socket {
	struct {
		void *out;
	} *iteration;
	struct socket *sk;
};

/* A map: what it is, the loader knows by the name. */
struct map {
	u32 opaque;
};

#define STORAGE_CREATE 1

static void *(*const map_lookup)(const struct map *map, const void *key) = (void *)1;
static u32 (*const random_u32)(void) = (void *)7;
static u64 (*const socket_cookie)(struct socket_address *ctx) = (void *)46;
static u64 (*const cookie_of)(void *sk) = (void *)46;
static void (*const lock)(struct bpf_spin_lock *lock) = (void *)93;
static void (*const unlock)(struct bpf_spin_lock *lock) = (void *)94;
static void *(*const storage_get)(const struct map *map, void *sk, void *value, u64 flags) = (void *)107;
static int (*const write_out)(void *out, const void *data, u32 len) = (void *)127;
static u64 (*const netns_cookie)(struct socket_address *ctx) = (void *)122;

#endif
