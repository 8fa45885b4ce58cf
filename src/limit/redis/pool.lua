-- One pool's state: whether it can be trusted, what it counts, and when the next slot is. Only functions; main.lua calls them.
--
-- Keys, all under the tag of KEYS[1] (`<prefix>:{<pool>}:state`):
--   state                            hash: run, seen, since (all permits from then on are on record), epoch, cold, gate, opened, ahead,
--                                    settled (ahead when the epoch began), floor
--   own                              set: the keys that never expire; a new epoch deletes them
--   <epoch>:recent                   list: the newest permits, so that they can be given back; the last one is the newest
--   <epoch>:undone                   list: requests to give permits back that were carried out, in case one arrives twice
--   <epoch>:late                     by how much late calls have delayed later ones, and the newest permit at that time (see back.lua)
--   <epoch>:<count>[:<tenant>]       the calls of one limit (see shapes.lua)
--   <epoch>:book/<count>[:<tenant>]  those of its calls that the book has (see ledger.lua)
--   <epoch>:tenants/<count>          zset: tenants by their last call
--
-- Every function takes the pool `p` first, a table with
--   spec, edges, lead       from the caller: the limits, the calendar edges around now, how far ahead a permit must be dated to be usable
--   run, seen, since, ...   the fields of the hash
--   clock_time              what Redis' clock shows, on the pool's timeline
--   now                     the same, bounded where that clock cannot be right
--   kept                    values by their keys, as read or as they will be saved (false: there is none)
--   unsaved                 keys and values that are saved together at the end
--   counts                  the counts loaded in this call, by limit and tenant
--   shared                  those of the whole pool, in the order of the limits
--   per_tenant              the numbers of the limits that count each tenant separately
--   newcomers               by limit: how many tenants it counts for the first time in this call
--   accounts                what the book has (see ledger.lua)
--
-- Fails closed. An epoch is a time in which no state was lost. When some may have been lost, a new epoch begins: short limits count as used
-- up, and long ones are restored from the book. Until that is done there are no permits.
--
-- Times are in microseconds on the pool's timeline: Redis' clock minus `ahead`. When that clock is set, `ahead` changes and the timeline does
-- not. Workers detect such a step with their own clocks and report it. Until one does, the time is bounded by the calling worker's clock.

local SECOND = 1000000
local GATE = -1 -- in place of a limit's number: the gate is what blocks

-- A tenant's keys expire this much later than necessary. Redis expires keys by its own clock: if that is set by less, no key is lost.
local SLACK = 60 * SECOND

local function new_pool(key, spec, args)
  return {
    key = key, base = string.sub(key, 1, -6), spec = spec, edges = args.edges, lead = args.lead,
    kept = {}, unsaved = {}, counts = {}, shared = {}, per_tenant = {}, newcomers = {}, accounts = {},
  }
end

-- What every script returns: its outcome, the time, the epoch, the gate, how far the clock is ahead, and lists that depend on the script.
local function reply(p, state, numbers, due, texts)
  return { state, p.clock_time, p.epoch or p.cold or '', p.gate, p.ahead, numbers, due or {}, texts or {} }
end

local function key_of(p, name, tenant)
  local key = p.base .. p.epoch .. ':' .. name
  return tenant == '' and key or key .. ':' .. tenant
end

local function add_own(p, ...)
  redis.call('SADD', p.base .. 'own', ...)
end

-- The value of a key.
local function get(p, key)
  if p.kept[key] == nil then p.kept[key] = redis.call('GET', key) end
  return p.kept[key]
end

-- Sets a key. One of a tenant expires some time after `until_at`; one of the pool itself never does, and is saved at the end of the script.
local function put(p, key, tenant, is_new, until_at, value)
  p.kept[key] = value
  if tenant ~= '' then
    redis.call('SET', key, value, 'PX', digits(math.ceil((math.max(until_at - p.now, 0) + SLACK) / 1000)))
    return
  end
  p.unsaved[key] = value
  if is_new then add_own(p, key) end
end

-- Saves what `put` has left to the end, with one command.
local function flush(p)
  local pairs_of = {}
  for key, value in pairs(p.unsaved) do pairs_of[#pairs_of + 1], pairs_of[#pairs_of + 2] = key, value end
  if #pairs_of > 0 then redis.call('MSET', unpack(pairs_of)) end
end

-- Reads what every script needs of the pool itself, with one command.
local function prefetch(p, args)
  local keys = {}
  for _, limit in ipairs(p.spec.limits) do
    if not limit.per_tenant and limit.kind ~= 'exact' then keys[#keys + 1] = key_of(p, limit.name, '') end
  end
  for _, ledger in ipairs(p.spec.ledgers) do
    if not ledger.per_tenant then keys[#keys + 1] = key_of(p, 'book/' .. ledger.name, '') end
  end
  if args.late then keys[#keys + 1] = key_of(p, 'late', '') end
  local missing = {}
  for _, key in ipairs(keys) do
    if p.kept[key] == nil then missing[#missing + 1] = key end
  end
  if #missing == 0 then return end
  for i, value in ipairs(redis.call('MGET', unpack(missing))) do p.kept[missing[i]] = value end
end

-- Ends the epoch and deletes the pool's state.
local function end_epoch(p)
  p.epoch, p.cold, p.opened, p.is_changed = nil, nil, {}, true
  local own = redis.call('SMEMBERS', p.base .. 'own')
  for i = 1, #own, 1000 do redis.call('UNLINK', unpack(own, i, math.min(i + 999, #own))) end
  redis.call('DEL', p.base .. 'own')
end

-- Reads the state and decides whether to trust it.
local function read_state(p, args)
  local kept = redis.call('HMGET', p.key, 'run', 'seen', 'gate', 'epoch', 'cold', 'opened', 'ahead', 'since', 'settled')
  p.seen, p.kept_gate, p.ahead = tonumber(kept[2] or 0), tonumber(kept[3] or 0), tonumber(kept[7] or 0)
  p.since, p.settled = tonumber(kept[8] or kept[2] or 0), tonumber(kept[9] or p.ahead)
  p.epoch, p.cold, p.gate = kept[4] or nil, kept[5] or nil, p.kept_gate
  p.opened = kept[6] and cmsgpack.unpack(kept[6]) or {}
  p.run = run_id()
  local is_lost = kept[1] ~= p.run
  if args.step and args.step.from == p.ahead then
    p.ahead, p.is_changed = args.step.to, true
    -- Several small steps may add up to a large one: calendars use the clock as it was when the epoch began.
    is_lost = is_lost or args.step.loses or math.abs(p.ahead - p.settled) > 3 * SECOND
  end
  p.clock_time = clock(args.now) - p.ahead
  p.now = p.clock_time
  if args.latest > 0 then
    -- The request may have been delayed on its way, or the clock was set forward.
    p.now = math.min(p.now, args.latest)
    is_lost = is_lost or p.clock_time > args.latest + SLACK / 2
  elseif p.now < p.seen - SECOND / 250 then
    -- The clock was set back, and the calling worker does not know by how much. The gate is moved with it, so it stays closed just as long.
    is_lost = true
    if p.gate > 0 then p.gate = p.gate + p.now - p.seen end
  end
  -- Permits that were given before a loss need no check here: by its own clock the caller waits until they are over.
  if is_lost then p.seen = math.min(p.seen, p.now) end
  p.now = math.max(p.now, p.seen)
  if is_lost then end_epoch(p) end
end

-- Saves the time, the gate and the epoch, if they have changed.
local function save_state(p)
  if not p.is_changed and p.gate == p.kept_gate and p.now - p.seen < SECOND / 10 then return end
  local fields = {
    'run', p.run, 'seen', digits(p.now), 'since', digits(p.since), 'gate', digits(p.gate),
    'ahead', digits(p.ahead), 'settled', digits(p.settled),
  }
  if p.is_changed then
    redis.call('HDEL', p.key, 'epoch', 'cold', 'opened')
    for name, value in pairs({ epoch = p.epoch, cold = p.cold, opened = cmsgpack.pack(p.opened) }) do
      fields[#fields + 1], fields[#fields + 2] = name, value
    end
  end
  redis.call('HSET', p.key, unpack(fields))
end

-- Closes the gate for this long, and announces it to all workers.
local function close_gate(p, pause, channel)
  p.gate = math.max(p.gate, p.now + pause)
  redis.call('PUBLISH', channel, p.spec.pool .. ' ' .. digits(p.gate))
end

-- True if the calendar edges from the caller cover all times that may be charged now.
local function edges_fit(p)
  local wall = p.now + p.ahead
  for _, edges in ipairs(p.edges) do
    if wall - p.spec.skew < edges[1] or wall + p.spec.longest + p.spec.skew >= edges[#edges] then return false end
  end
  return true
end

-- The count of a limit, by its number; loaded once. The tenant is '' for a limit of the whole pool. `k`: how many calls may be charged to it.
local function count_of(p, number, tenant, k)
  local id = number .. ':' .. tenant
  if p.counts[id] then return p.counts[id] end
  local limit = p.spec.limits[number]
  local shape = shapes[limit.kind]
  local c = { shape = shape, number = number, tenant = tenant, key = key_of(p, limit.name, tenant) }
  for name, value in pairs(limit) do c[name] = value end
  c.edges, c.skew, c.ahead, c.opened = p.edges[limit.zone], p.spec.skew, p.ahead, p.opened[limit.name] or 0
  -- Calls that a cold start assumed are forgotten like all others.
  if c.opened > 0 and c.opened + c.memory <= p.now then c.opened = 0 end
  if shape.load then
    shape.load(c, k)
  else
    local stored = get(p, c.key)
    c.is_new = not stored
    shape.read(c, stored and cmsgpack.unpack(stored))
  end
  p.counts[id] = c
  return c
end

local function load_counts(p, k)
  for number, limit in ipairs(p.spec.limits) do
    if limit.per_tenant then
      p.per_tenant[#p.per_tenant + 1] = number
    else
      p.shared[#p.shared + 1] = count_of(p, number, '', k)
    end
  end
end

-- The same for a list that was written already.
local function keep_key(p, key, tenant, is_new, until_at)
  if tenant ~= '' then
    redis.call('PEXPIRE', key, digits(math.ceil((math.max(until_at - p.now, 0) + SLACK) / 1000)))
  elseif is_new then
    add_own(p, key)
  end
end

-- Saves the counts that were charged and unloads all.
local function save_counts(p)
  for _, c in pairs(p.counts) do
    if c.is_charged then
      local until_at = c.edges and c.edges[#c.edges] + c.skew - p.ahead or p.now + p.spec.longest + c.memory
      if c.shape.save then
        c.shape.save(c)
        keep_key(p, c.key, c.tenant, c.is_new, until_at)
      else
        put(p, c.key, c.tenant, c.is_new, until_at, cmsgpack.pack(c.shape.write(c)))
      end
      if c.tenant ~= '' then
        local tenants = key_of(p, 'tenants/' .. c.name, '')
        if redis.call('ZADD', tenants, digits(p.now), c.tenant) == 1 then add_own(p, tenants) end
      end
    end
  end
  p.counts, p.newcomers = {}, {}
end

local function charge(p, c, at)
  if c.is_new and c.tenant ~= '' and not c.is_charged then p.newcomers[c.number] = (p.newcomers[c.number] or 0) + 1 end
  c.shape.charge(c, at)
  c.is_charged = true
end

-- The newest permits, oldest first.
local function recent_permits(p)
  return redis.call('LRANGE', key_of(p, 'recent', ''), 0, -1)
end

-- The newest permit: its time, the limit that decided it, and its tenant.
local function newest_permit(p)
  local top = redis.call('LINDEX', key_of(p, 'recent', ''), -1)
  if not top then return 0, 0, '' end
  local at, by, tenant = string.match(top, '^(%d+) (%-?%d+) (.*)$')
  return tonumber(at), tonumber(by), tenant
end

-- The earliest time that the gate, the newest permit and all limits of the pool allow, and which of them decides it (0: none). It is at least
-- `lead` from now: the worker must get the answer before that time.
local function next_slot(p, last, last_by)
  local at, by = p.now + p.lead, 0
  if last > 0 and last + p.spec.gap > at then
    at, by = last + p.spec.gap, last_by ~= 0 and last_by or p.spec.gap_by
  end
  if p.gate > at then at, by = p.gate, GATE end
  repeat
    local before = at
    for _, c in ipairs(p.shared) do
      local earliest = c.shape.earliest(c, at)
      if earliest > at then at, by = earliest, c.number end
    end
  until at == before
  return at, by
end

-- How many calls are allowed from `at` to `until_at`. It charges the loaded counts, so they cannot be used after it.
local function room(p, at, until_at, most)
  local count = 0
  while count < most and at <= until_at do
    count = count + 1
    for _, c in ipairs(p.shared) do c.shape.charge(c, at) end
    at = next_slot(p, at, 0)
  end
  return count
end

-- True if this limit cannot count another tenant. Tenants whose calls no longer matter are removed first.
local function is_full(p, c)
  local tenants, most = key_of(p, 'tenants/' .. c.name, ''), p.spec.most_tenants - (p.newcomers[c.number] or 0)
  if redis.call('ZCARD', tenants) < most then return false end
  redis.call('ZREMRANGEBYSCORE', tenants, '-inf', digits(p.now - p.spec.longest - c.memory))
  return redis.call('ZCARD', tenants) >= most
end

-- Until when the tenant's own limits forbid a call at `at`, and which of them does; nothing if none does.
local function tenant_wait(p, tenant, at, k)
  local until_at, by
  for _, number in ipairs(p.per_tenant) do
    local c = count_of(p, number, tenant, k)
    local is_unknown = c.is_new and not c.is_charged
    local earliest = is_unknown and is_full(p, c) and at + SECOND or c.shape.earliest(c, at)
    if earliest > at and earliest >= (until_at or 0) then until_at, by = earliest, number end
  end
  return until_at, by
end
