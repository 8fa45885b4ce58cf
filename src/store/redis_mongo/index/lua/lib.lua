-- What the dispatch scripts share. KEYS[1] is "<prefix>:{<vendor>}": all keys of a vendor begin with it, so they lie in one hash slot.
--
-- A line is one stream of a vendor: 0, 1, 2 are calls of priority high, normal, low; 3, 4, 5 are polls. Of each line:
--   :<line>:jobs     the stream, a short piece of what waits; its entries stay until the job is settled
--   :<line>:due      tenants with more in MongoDB than in the stream, in turn
--   :<line>:asleep   tenants with something to do later, by when (ms)
--   :<line>:reading  tenants that somebody reads from MongoDB now, by when that is given up (ms)
--   :<line>:resting  tenants over their own limit, until when (ms)
-- Of the vendor:
--   :index   the ids in its streams and where: '-<line> <entry>' is free, '+<line> <entry> <worker>' is leased
--   :state   epoch (a name for this index), run (of Redis, in which it was opened), is_open (1: before, nothing is added or claimed), looks
--            (for leases that have lapsed, so far), sweep_at, turn, spent, claimed
--   :counts  how many jobs are where: waiting, open, live
local base = KEYS[1]
local GROUP, FREE = 'workers', 'free'
local index, state, counts = base .. ':index', base .. ':state', base .. ':counts'

local function of(line, what)
  return base .. ':' .. line .. ':' .. what
end

local function number(text)
  return string.format('%.0f', text)
end

-- Entries of a line that a worker may take, and how many of them were given back by one.
local function waiting(line)
  local pending = redis.call('XPENDING', of(line, 'jobs'), GROUP)
  local free = 0
  if pending[1] > 0 then
    for _, consumer in ipairs(pending[4]) do
      if consumer[1] == FREE then free = tonumber(consumer[2]) end
    end
  end
  return redis.call('XLEN', of(line, 'jobs')) - pending[1] + free, free, pending[1] - free
end

-- Whether so few are left for workers that a line is to be filled: to read a lane costs what is in its stream already once more, so late,
-- but not so late that a claim comes to the end of one line and takes more of another than its share.
local FEW = 512
local function is_low(left, depth)
  return left < math.min(depth / 2, FEW)
end

-- The epoch and whether the index is open; nothing when the index was lost. A stream that has gone alone raises NOGROUP where it is used.
local function epoch()
  local name, is_open = unpack(redis.call('HMGET', state, 'epoch', 'is_open'))
  if name and is_open then return name, is_open == '1' end
end

-- Changes when Redis restarts and when a replica takes over.
local function run_id()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
end

-- The same where entries are handed out or taken over: in another run of Redis the index is as good as lost, because it may be an older one,
-- that knows nothing of the last claims. What is written into an old index by other scripts goes when the new one is opened.
local function epoch_of_this_run()
  if redis.call('HGET', state, 'run') ~= run_id() then return nil end
  return epoch()
end

-- What frees memory, or needs next to none, is done in a full Redis too: after a first write the limit no longer stops a script.
local function even_when_full()
  redis.call('DEL', base .. ':none')
end

local function ring()
  redis.call('PUBLISH', string.match(base, '^(.*):{') .. ':bells', string.match(base, '{(.*)}$'))
end

local have_turns = {} -- lanes that have taken their turn in this call

-- A tenant has something in MongoDB that is due: it takes its turn, unless it has one.
local function take_turn(line, tenant)
  local lane = line .. ' ' .. tenant
  if have_turns[lane] then return false end
  have_turns[lane] = true
  local turn = redis.call('HINCRBY', state, 'turn', 1)
  return redis.call('ZADD', of(line, 'due'), 'NX', turn, tenant) == 1
end

local function sleep(line, tenant, until_ms)
  redis.call('ZADD', of(line, 'asleep'), 'LT', until_ms, tenant)
end

-- Tenants whose time has come take their turn; so do those whose reader has given up.
local function wake(line, now)
  for _, what in ipairs({'asleep', 'reading'}) do
    local up = redis.call('ZRANGE', of(line, what), '-inf', number(now), 'BYSCORE', 'LIMIT', 0, 1000)
    for _, tenant in ipairs(up) do
      redis.call('ZREM', of(line, what), tenant)
      take_turn(line, tenant)
    end
  end
end

-- Until when a tenant is to be left alone, if it is.
local function rests(line, tenant, now)
  local until_ms = tonumber(redis.call('ZSCORE', of(line, 'resting'), tenant) or 0)
  if until_ms > now then return until_ms end
  if until_ms > 0 then redis.call('ZREM', of(line, 'resting'), tenant) end
  return nil
end

-- Where an id is, as the index has it: free, or leased by a worker.
local function free_at(line, entry)
  return '-' .. line .. ' ' .. entry
end

local function leased_at(line, entry, worker)
  return '+' .. line .. ' ' .. entry .. ' ' .. worker
end

-- An entry has its own record of how long it is leased: its time of delivery is the number of the last look for lapsed leases, in seconds,
-- so that a script may take a while between two readings of the clock. A clock can be set back, the number of looks only grows.
local LOOK = 1000

-- Leases entries of a line to a worker, or keeps them leased.
local function lease(line, entries, worker)
  local claim = {'XCLAIM', of(line, 'jobs'), GROUP, worker, '0'}
  for _, entry in ipairs(entries) do claim[#claim + 1] = entry end
  for _, word in ipairs({'TIME', number(redis.call('HGET', state, 'looks') * LOOK), 'JUSTID'}) do claim[#claim + 1] = word end
  redis.call(unpack(claim))
end

-- The line and the entry that a place in the index names.
local function parts(where)
  return string.match(where, '^.(%d) (%S+)')
end

-- In which line an id is, and its entry there.
local function place(id)
  return parts(redis.call('HGET', index, id) or '')
end

local is_whole -- as many entries in the streams as ids in the index: looked at once a call, before anything is added

-- Whether an id is where the index has it: its entry may have been deleted by somebody else. Where nothing is missing, none is looked for.
local function is_there(where)
  if is_whole == nil then
    local entries = 0
    for line = 0, tonumber(ARGV[2]) - 1 do entries = entries + redis.call('XLEN', of(line, 'jobs')) end
    is_whole = entries == redis.call('HLEN', index)
  end
  if is_whole then return true end
  local line, name = parts(where)
  return line and #redis.call('XRANGE', of(line, 'jobs'), name, name) == 1
end

-- Ids go into the stream of a line, each of them once; gives the entries of those that were in none.
local function add(line, ids)
  local entries = {}
  -- A thousand at a time: Lua's stack is bounded.
  for from = 1, #ids, 1000 do
    local some, new, notes = { unpack(ids, from, math.min(from + 999, #ids)) }, {}, {}
    for i, where in ipairs(redis.call('HMGET', index, unpack(some))) do
      if not (where and is_there(where)) then new[#new + 1] = some[i] end
    end
    local added = {}
    for _, id in ipairs(new) do
      if not added[id] then
        local entry = redis.call('XADD', of(line, 'jobs'), '*', 'id', id)
        added[id], entries[#entries + 1] = true, entry
        notes[#notes + 1], notes[#notes + 2] = id, free_at(line, entry)
      end
    end
    if #notes > 0 then redis.call('HSET', index, unpack(notes)) end
  end
  return entries
end

-- Takes entries of a line, { entry, id } each, out for good: acknowledged and deleted together, or their memory would never be freed.
local function remove(line, entries)
  for from = 1, #entries, 1000 do
    local names, ids = {}, {}
    for i = from, math.min(from + 999, #entries) do names[#names + 1], ids[#ids + 1] = unpack(entries[i]) end
    redis.call('XACK', of(line, 'jobs'), GROUP, unpack(names))
    redis.call('XDEL', of(line, 'jobs'), unpack(names))
    redis.call('HDEL', index, unpack(ids))
  end
end

-- Of entries of a line, { entry, id } each, those that a worker has leased.
local function leased_by(line, entries, worker)
  local leased = {}
  for from = 1, #entries, 1000 do
    local ids = {}
    for i = from, math.min(from + 999, #entries) do ids[#ids + 1] = entries[i][2] end
    for i, where in ipairs(redis.call('HMGET', index, unpack(ids))) do
      local entry = entries[from + i - 1]
      if where == leased_at(line, entry[1], worker) then leased[#leased + 1] = entry end
    end
  end
  return leased
end

-- Entries of ours. One that is not is taken out, and stops none of its neighbours.
local function ours(line, entries)
  local good = {}
  for _, entry in ipairs(entries) do
    -- Before Redis 7 one that somebody else deleted is claimed as nothing.
    if not entry then
    elseif entry[2] and entry[2][1] == 'id' and #entry[2] == 2 and #entry[2][2] == 16 then
      good[#good + 1] = entry
    else
      redis.log(redis.LOG_WARNING, 'fetchgate: an entry of ' .. of(line, 'jobs') .. ' is not ours: ' .. entry[1])
      redis.call('XACK', of(line, 'jobs'), GROUP, entry[1])
      redis.call('XDEL', of(line, 'jobs'), entry[1])
    end
  end
  return good
end

local free_lanes = {} -- of those looked at in this call: whether a job may go straight into the stream

-- A job that wants to go: straight into the stream if there is room and its tenant has nothing waiting before it, else its tenant takes
-- its turn and it is read from MongoDB when that comes. Gives whether it is to be added to the stream, and whether the bell has to ring.
local function enqueue(line, tenant, due_at, now, is_open, room)
  if due_at > now then
    local first = redis.call('ZRANGE', of(line, 'asleep'), 0, 0, 'WITHSCORES')
    sleep(line, tenant, number(due_at))
    return false, not first[2] or tonumber(first[2]) > due_at
  end
  local lane = line .. ' ' .. tenant
  if free_lanes[lane] == nil then
    free_lanes[lane] = not (rests(line, tenant, now)
      or redis.call('ZSCORE', of(line, 'due'), tenant) or redis.call('ZSCORE', of(line, 'reading'), tenant))
  end
  if not is_open or room <= 0 or not free_lanes[lane] then
    free_lanes[lane] = false
    return false, take_turn(line, tenant)
  end
  return true, true
end

-- By how much the counts of the vendor change.
local function count(waiting_by, open_by, live_by)
  if waiting_by ~= 0 then redis.call('HINCRBY', counts, 'waiting', waiting_by) end
  if open_by ~= 0 then redis.call('HINCRBY', counts, 'open', open_by) end
  if live_by ~= 0 then redis.call('HINCRBY', counts, 'live', live_by) end
end
