/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What the programs of both families have in common. Any doubt means that the connection is left to the rules. */
#ifndef KUBE_PROXY_BALANCE_H
#define KUBE_PROXY_BALANCE_H

#include "schema.h"

#define NO_SLOT 0

/* The entry of `meta`, unless everything is switched off. */
ALWAYS_INLINE struct meta *switched_on(const struct map *map)
{
	u32 zero = 0;
	struct meta *meta = map_lookup(map, &zero);

	if (!meta || (!meta->on && !meta->canary_socket))
		return NULL;
	return meta;
}

/* The agent proves the hook with this socket. */
ALWAYS_INLINE int is_canary(struct socket_address *ctx, struct meta *meta)
{
	u64 socket = meta->canary_socket;

	if (!socket || socket != socket_cookie(ctx))
		return 0;
	meta->canary_netns = netns_cookie(ctx);
	return 1;
}

ALWAYS_INLINE int is_host(struct socket_address *ctx, const struct meta *meta)
{
	return netns_cookie(ctx) == meta->host_netns;
}

#define CHECK_FACTOR 0x9e3779b1U

/*
 * Copies a frontend that was found. False if it is another one's meanwhile: the kernel writes the first word first, so if it is
 * still the same at the end, so was all else.
 */
ALWAYS_INLINE int read_frontend(const volatile struct frontend *found, u32 check, struct frontend *copy)
{
	copy->base = found->base;
	copy->count = found->count;
	copy->flags = found->flags;
	copy->epoch = found->epoch;
	copy->pool = found->pool;
	return found->check == check;
}

/*
 * One of a frontend's slots, each as likely as any other if all numbers of 32 bits are. An extent that was given to another pool has
 * another epoch.
 */
ALWAYS_INLINE u64 choose_slot(const struct map *slots, const struct frontend *frontend, u32 number)
{
	u32 idx = frontend->base + (u32)(((u64)number * frontend->count) >> 32);
	volatile u64 *place = map_lookup(slots, &idx);
	u64 slot;

	if (!place)
		return NO_SLOT;
	slot = *place;
	return SLOT_EXTENT_EPOCH(slot) == frontend->epoch ? slot : NO_SLOT;
}

/* For a socket and an address always the same, so that threads that send to it for the first time choose alike. */
ALWAYS_INLINE u32 number_of(struct socket_address *ctx, u32 check)
{
	u64 cookie = socket_cookie(ctx);
	u32 mixed = ((u32)cookie ^ (u32)(cookie >> 32) ^ check) * CHECK_FACTOR;

	mixed = (mixed ^ mixed >> 15) * 0x85ebca6bU;
	mixed = (mixed ^ mixed >> 13) * 0xc2b2ae35U;
	return mixed ^ mixed >> 16;
}

ALWAYS_INLINE int is_connected(const struct socket_address *ctx)
{
	return ctx->sk && ctx->sk->state == CONNECTED;
}

/* An address of IPv4 as ::ffff:10.96.0.1. */
ALWAYS_INLINE int is_mapped(const struct socket_address *ctx)
{
	return !ctx->user_ip6[0] && !ctx->user_ip6[1] && ctx->user_ip6[2] == 0xffff0000;
}

/* Atomic: whoever is interrupted between reading and writing would take back what others have counted meanwhile. */
ALWAYS_INLINE void count(const struct map *counters, u32 endpoint)
{
	struct counter *counter = map_lookup(counters, &endpoint);

	if (counter)
		__sync_fetch_and_add(&counter->translated, 1);
}

#endif
