-- One pool's state: is it to be trusted, what does it count, and when is the next slot? Every script on a pool begins with this.
--
-- Keys, all under the tag of KEYS[1] (`<prefix>:{<pool>}:state`):
--   state                            hash: run, seen, since, epoch, cold, gate, opened, ahead, settled (ahead when the epoch began)
--   own                              set: keys of the pool itself. They never expire, so a new epoch has to drop them
--   <epoch>:recent                   list: the newest permits, so that they can be handed back; the last is the newest slot
--   <epoch>:undone                   list: hand-backs that were done, should one arrive twice
--   <epoch>:late                     by how much calls were put off of late, and what was the newest permit then (see back)
--   <epoch>:<count>[:<tenant>]       what one count remembers (see shapes)
--   <epoch>:book/<count>[:<tenant>]  what the book has of it (see ledger)
--   <epoch>:tenants/<count>          zset: tenants by their last call
--
-- Fails closed. The epoch is a name for a stretch of time in which nothing was lost; when anything may have been, the next begins with
-- short limits used up and long ones restored from the book, and until that is done there is no permit.
--
-- Times are those of the pool's timeline, which goes on when Redis' clock is set: what that shows is `ahead` of it. Workers see a step by their
-- own clocks and say so. Until they do, it is never later than the asking worker's clock allows.

local spec, call = cjson.decode(ARGV[1]), cjson.decode(ARGV[2])
local base = string.sub(KEYS[1], 1, -6)
local SECOND = 1000000
local GATE = -1 -- in place of a limit's number: the gate makes wait

-- `told` is what the clock says, on the timeline; `now` is that, unless the clock cannot be right.
local told, now, seen, since, run, gate, epoch, cold, opened, ahead, settled, is_changed
local shared, all = {}, {} -- counts of the whole pool, and all counts in use by number and tenant
local personal = {} -- the numbers of the limits that each tenant has for itself
local newcomers = {} -- tenants first seen in this call, by limit

-- A tenant's keys live so much longer than they are needed. Redis forgets keys by its clock: a step of less loses none.
local SLACK = 60 * SECOND

-- Keeps what every call has learnt: the time, the gate, and in which epoch we are. A look that has learnt nothing new writes nothing.
local function save_state(kept_gate)
  if not is_changed and gate == kept_gate and now - seen < SECOND / 10 then return end
  local fields = { 'run', run, 'seen', digits(now), 'since', digits(since), 'gate', digits(gate), 'ahead', digits(ahead), 'settled', digits(settled) }
  if is_changed then
    redis.call('HDEL', KEYS[1], 'epoch', 'cold', 'opened')
    for name, value in pairs({ epoch = epoch, cold = cold, opened = cmsgpack.pack(opened) }) do
      fields[#fields + 1], fields[#fields + 2] = name, value
    end
  end
  redis.call('HSET', KEYS[1], unpack(fields))
end

-- Reads the state and decides whether to trust it. Gives the gate as it was kept.
local function read_state()
  local kept = redis.call('HMGET', KEYS[1], 'run', 'seen', 'gate', 'epoch', 'cold', 'opened', 'ahead', 'since', 'settled')
  seen, gate, ahead, since = tonumber(kept[2] or 0), tonumber(kept[3] or 0), tonumber(kept[7] or 0), tonumber(kept[8] or kept[2] or 0)
  settled = tonumber(kept[9] or ahead)
  local kept_gate = gate
  epoch, cold = kept[4] or nil, kept[5] or nil
  opened = kept[6] and cmsgpack.unpack(kept[6]) or {}
  run = run_id()
  local is_lost = kept[1] ~= run
  if call.step and call.step.from == ahead then
    ahead, is_changed = call.step.to, true
    -- Several small steps that come to a large one too: calendars go by the clock as it was when the epoch began.
    is_lost = is_lost or call.step.loses or math.abs(ahead - settled) > 3 * SECOND
  end
  told = clock(call.now) - ahead
  now = told
  if call.latest > 0 then
    -- A question that was long on its way, or a clock that was set forward.
    now = math.min(now, call.latest)
    is_lost = is_lost or told > call.latest + SLACK / 2
  elseif now < seen - SECOND / 250 then
    -- Set back, and the asking worker does not know by how much: the gate stays closed as long as it would have been.
    is_lost = true
    if gate > 0 then gate = gate + now - seen end
  end
  -- Permits of before a loss are waited for by the caller's own clock.
  if is_lost then seen = math.min(seen, now) end
  now = math.max(now, seen)
  if is_lost then
    epoch, cold, opened, is_changed = nil, nil, {}, true
    local own = redis.call('SMEMBERS', base .. 'own')
    for i = 1, #own, 1000 do redis.call('UNLINK', unpack(own, i, math.min(i + 999, #own))) end
    redis.call('DEL', base .. 'own')
  end
  return kept_gate
end

local function key_of(name, tenant)
  local key = base .. epoch .. ':' .. name
  return tenant == '' and key or key .. ':' .. tenant
end

-- The number of calendar edges around now has to do for all that may be charged now.
local function edges_fit()
  for _, edges in ipairs(call.edges) do
    local wall = now + ahead
    if wall - spec.skew < edges[1] or wall + spec.longest + spec.skew >= edges[#edges] then return false end
  end
  return true
end

-- A count of a limit, by its number; loaded once. The tenant is '' for one of the whole pool. `k`: calls it may be charged.
local function count_of(number, tenant, k)
  local id = number .. ':' .. tenant
  if all[id] then return all[id] end
  local limit = spec.limits[number]
  local shape = shapes[limit.kind]
  local c = { shape = shape, number = number, tenant = tenant, key = key_of(limit.name, tenant) }
  for name, value in pairs(limit) do c[name] = value end
  c.edges, c.skew, c.ahead, c.opened = call.edges[limit.zone], spec.skew, ahead, opened[limit.name] or 0
  -- What was used up at a cold start is forgotten like everything else.
  if c.opened > 0 and c.opened + c.memory <= now then c.opened = 0 end
  if shape.load then
    shape.load(c, k)
  else
    local stored = redis.call('GET', c.key)
    c.is_new = not stored
    shape.read(c, stored and cmsgpack.unpack(stored))
  end
  all[id] = c
  return c
end

-- How long a key that belongs to a tenant is kept: rounded up, and the slack. A pool's own keys are kept for ever.
local function keep(key, tenant, is_new, until_at)
  if tenant ~= '' then
    redis.call('PEXPIRE', key, digits(math.ceil((math.max(until_at - now, 0) + SLACK) / 1000)))
  elseif is_new then
    redis.call('SADD', base .. 'own', key)
  end
end

local function save_count(c)
  if c.shape.save then c.shape.save(c) else redis.call('SET', c.key, cmsgpack.pack(c.shape.write(c))) end
  keep(c.key, c.tenant, c.is_new, c.edges and c.edges[#c.edges] + c.skew - ahead or now + spec.longest + c.memory)
  if c.tenant ~= '' then
    local tenants = key_of('tenants/' .. c.name, '')
    if redis.call('ZADD', tenants, digits(now), c.tenant) == 1 then redis.call('SADD', base .. 'own', tenants) end
  end
end

local function save_counts()
  for _, c in pairs(all) do
    if c.is_charged then save_count(c) end
  end
end

local function charge(c, at)
  if c.is_new and c.tenant ~= '' and not c.is_charged then newcomers[c.number] = (newcomers[c.number] or 0) + 1 end
  c.shape.charge(c, at)
  c.is_charged = true
end

-- The newest permit: its time, what it had waited for, whose it was.
local function newest()
  local top = redis.call('LINDEX', key_of('recent', ''), -1)
  if not top then return 0, 0, '' end
  local at, by, tenant = string.match(top, '^(%d+) (%-?%d+) (.*)$')
  return tonumber(at), tonumber(by), tenant
end

-- The first slot that the gate, the newest permit and all limits of the pool allow, and what puts it off (0: nothing). Not before the answer
-- can have come: a permit that is late from the beginning would be of no use.
local function next_slot(last, last_by)
  local at, by = now + call.lead, 0
  if last > 0 and last + spec.gap > at then at, by = last + spec.gap, last_by ~= 0 and last_by or spec.gap_by end
  if gate > at then at, by = gate, GATE end
  repeat
    local before = at
    for _, c in ipairs(shared) do
      local earliest = c.shape.earliest(c, at)
      if earliest > at then at, by = earliest, c.number end
    end
  until at == before
  return at, by
end

-- How many more calls find room from a slot until then. Charges in memory only: the counts are of no use afterwards.
local function room(at, until_at, most)
  local count = 0
  while count < most and at <= until_at do
    count = count + 1
    for _, c in ipairs(shared) do c.shape.charge(c, at) end
    at = next_slot(at, 0)
  end
  return count
end

-- True when no further tenant of this limit can be remembered. Those whose calls are forgotten make room.
local function is_full(c)
  local tenants, most = key_of('tenants/' .. c.name, ''), spec.most_tenants - (newcomers[c.number] or 0)
  if redis.call('ZCARD', tenants) < most then return false end
  redis.call('ZREMRANGEBYSCORE', tenants, '-inf', digits(now - spec.longest - c.memory))
  return redis.call('ZCARD', tenants) >= most
end

-- Until when the tenant's own limits forbid a call at `at`, and which does.
local function tenant_wait(tenant, at, k)
  local until_at, by
  for _, number in ipairs(personal) do
    local c = count_of(number, tenant, k)
    local is_unknown = c.is_new and not c.is_charged
    local earliest = is_unknown and is_full(c) and at + SECOND or c.shape.earliest(c, at)
    if earliest > at and earliest >= (until_at or 0) then until_at, by = earliest, number end
  end
  return until_at, by
end
