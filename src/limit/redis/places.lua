-- Who may have how many calls of a vendor in flight: blocks of places, one for each process, together never more than there are.
--
-- KEYS[1] `<prefix>:{<vendor>}:places` is a hash: run, seen, since (when it was begun), and a member for each process. A block that is not
-- renewed is not used by its own process after LIVE, and not given to others before the calls begun in it must be over.

local call = cjson.decode(ARGV[1])
local SECOND = 1000000
local LIVE, GRACE = 2 * SECOND, 3 * SECOND
local now, run = clock(call.now), run_id()

local kept, flat = {}, redis.call('HGETALL', KEYS[1])
for i = 1, #flat, 2 do kept[flat[i]] = flat[i + 1] end
local seen, since = tonumber(kept.seen or 0), tonumber(kept.since or 0)
local expected = call.expected > 0 and call.since == since and call.expected or now
local is_lost = kept.run ~= run or now < seen - 2 * SECOND or math.abs(now - expected) > 0.5 * SECOND
if is_lost then
  redis.call('DEL', KEYS[1])
  kept, since = {}, now
else
  now = math.max(now, seen)
end

local members, others = {}, 0
for name, packed in pairs(kept) do
  local id = string.match(name, '^of (.+)$')
  if id then
    local block, busy, at, timeout = unpack(cmsgpack.unpack(packed))
    if at + LIVE + timeout < now then
      redis.call('HDEL', KEYS[1], name)
    else
      members[id] = { id = id, block = block, busy = busy, is_live = at + LIVE >= now }
      if id ~= call.member then others = others + block end
    end
  end
end
local me = members[call.member] or { id = call.member, block = 0 }
me.busy, me.is_live, members[call.member] = call.busy, true, me

-- What each would like: all there are while it uses at least half of what it has, else twice what it uses.
local function demand(member)
  return member.busy * 2 >= member.block and call.most or member.busy * 2 + 1
end

-- This process's fair share: nobody gets more than he would like while another gets less than he would; what nobody wants is shared too.
local function share()
  local waiting, left, mine = {}, call.most, 0
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
      if demand(member) <= each then
        left, modest = left - demand(member), true
        if member == me then mine = demand(me) end
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

if call.leaves then
  redis.call('HDEL', KEYS[1], 'of ' .. me.id)
  me.block = 0
elseif not (call.repairs and me.block > 0) then
  -- What is in use is kept whatever happens. While those who lived through a loss have not all said what they use, that is taken on
  -- their word and nothing new is given.
  local is_shaken = now < since + GRACE
  local held = is_shaken and call.held or math.min(call.held, me.block)
  local new = (is_shaken or call.repairs) and 0 or math.min(share(), call.most - others)
  me.block = math.max(new, held)
  redis.call('HSET', KEYS[1], 'of ' .. me.id, cmsgpack.pack({ me.block, me.busy, now - call.age, call.timeout }))
end
redis.call('HSET', KEYS[1], 'run', run, 'seen', digits(now), 'since', digits(since))
return { me.block, now, since }
