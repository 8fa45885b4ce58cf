-- Who may have how many calls of a vendor in flight: each process leases a share of the vendor's places; together never more than there are.
--
-- KEYS[1] `<prefix>:{<vendor>}:places` is a hash: run, seen, since (when it was begun), and a member for each process. A share that is not
-- renewed for LIVE is not used by its own process any more. Others get it only when the calls that were begun in it must be over. A process
-- that needs no places deletes its own member.
-- ARGV[1]: the request, as JSON (`Args` in shares.rs names the fields; times and durations in microseconds).
-- Gives: the size of the caller's share, the time, and when the hash was begun.

local SECOND = 1000000
local LIVE, GRACE = 2 * SECOND, 3 * SECOND
-- One place of so many goes only to a process that has nearly all of its own in use. When a process dies, nobody knows what it had in flight:
-- with these places others begin at once.
local SPARE = 8

-- The time, when the hash was begun, its members by id, and the fields to write in any case. Begins it anew when something may have been lost.
local function read_members(args)
  local kept, flat = {}, redis.call('HGETALL', KEYS[1])
  for i = 1, #flat, 2 do kept[flat[i]] = flat[i + 1] end
  local now, run = clock(args.now), run_id()
  local seen, since = tonumber(kept.seen or 0), tonumber(kept.since or 0)
  local expected = args.expected > 0 and args.since == since and args.expected or now
  if kept.run ~= run or now < seen - 2 * SECOND or math.abs(now - expected) > 0.5 * SECOND then
    redis.call('DEL', KEYS[1])
    kept, since = {}, now
  else
    now = math.max(now, seen)
  end
  local fields = { 'run', run, 'seen', digits(now), 'since', digits(since) }
  local members = {}
  for name, packed in pairs(kept) do
    local id = string.match(name, '^of (.+)$')
    if id then
      local size, busy, at, timeout = unpack(cmsgpack.unpack(packed))
      if at + LIVE + timeout < now then
        redis.call('HDEL', KEYS[1], name)
      else
        members[id] = { id = id, size = size, busy = busy, is_live = at + LIVE >= now }
      end
    end
  end
  return now, since, members, fields
end

-- What a process would like: all places while it uses at least half of its share, else twice what it uses.
local function demand(member, most)
  return member.busy * 2 >= member.size and most or member.busy * 2 + 1
end

-- The fair share of `me`: nobody gets more than it would like while another gets less than it would. What nobody wants is shared as well.
local function fair_share(me, members, most)
  local waiting, left, mine = {}, most, 0
  for _, member in pairs(members) do
    if member.is_live then waiting[#waiting + 1] = member end
  end
  table.sort(waiting, function(a, b) return a.id < b.id end)
  local active = waiting
  local modest = true
  while modest and #waiting > 0 do
    modest = false
    local each, others_waiting = math.floor(left / #waiting), {}
    for _, member in ipairs(waiting) do
      local wants = demand(member, most)
      if wants <= each then
        left, modest = left - wants, true
        if member == me then mine = wants end
      else
        others_waiting[#others_waiting + 1] = member
      end
    end
    waiting = others_waiting
  end
  local among = #waiting > 0 and waiting or active
  for i, member in ipairs(among) do
    if member == me then mine = mine + math.floor(left / #among) + (i <= left % #among and 1 or 0) end
  end
  return mine
end

-- The new size of the share. What is in use is kept whatever happens. For a while after a loss not every process has reported what it uses:
-- until then each one's own number is trusted, and nobody gets more.
local function new_size(args, me, members, is_uncertain)
  local in_use = is_uncertain and args.in_use or math.min(args.in_use, me.size)
  if is_uncertain or args.reports then return in_use end
  local others = 0
  for _, member in pairs(members) do
    if member ~= me then others = others + member.size end
  end
  local left, fair = args.most - others, fair_share(me, members, args.most)
  local spare = math.floor(args.most / SPARE)
  if args.busy < left - spare then fair = math.min(fair, left - spare) end
  return math.max(math.min(fair, left), in_use)
end

local args = cjson.decode(ARGV[1])
local now, since, members, fields = read_members(args)
local me = members[args.member] or { id = args.member, size = 0 }
me.busy, me.is_live, members[args.member] = args.busy, true, me
if not (args.reports and me.size > 0) then
  me.size = new_size(args, me, members, now < since + GRACE)
  fields[#fields + 1], fields[#fields + 2] = 'of ' .. me.id, cmsgpack.pack({ me.size, me.busy, now - args.age, args.timeout })
end
redis.call('HSET', KEYS[1], unpack(fields))
return { me.size, now, since }
