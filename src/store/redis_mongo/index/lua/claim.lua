-- Gives a worker entries: polls before calls within a priority, priorities by stride (16 : 4 : 1), those given back first.
-- ARGV: now, lines, depth, most, calls, consumer, claimed (-1, or how many calls had ever been claimed when `calls` was reckoned: those
-- claimed since count against it).
-- Gives: epoch, how many lines are low while tenants have something due in MongoDB, then for each entry: line, entry, id.
even_when_full()
local now, lines, depth = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local most, calls, consumer = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local name, is_open = epoch_of_this_run()
if not name then return {'', '0'} end
local here, free = {}, {}
for line = 0, 5 do
  here[line], free[line] = 0, 0
  if line < lines and is_open then
    wake(line, now)
    here[line], free[line] = waiting(line)
  end
end
calls = math.min(calls, most)
if tonumber(ARGV[7]) >= 0 then
  calls = math.max(0, calls - (tonumber(redis.call('HGET', state, 'claimed') or 0) - tonumber(ARGV[7])))
end

-- Whose turn it is: the priority that has spent the least goes next and pays the inverse of its share.
local COST = {[0] = 1, 4, 16}
local spent, left = {}, {}
local stored = redis.call('HMGET', state, 'spent0', 'spent1', 'spent2')
for p = 0, 2 do
  spent[p] = tonumber(stored[p + 1]) or -1
  left[p] = here[p + 3] + here[p]
end
local least
for p = 0, 2 do
  if left[p] > 0 and spent[p] >= 0 and (not least or spent[p] < least) then least = spent[p] end
end
-- Having been idle earns no credit.
for p = 0, 2 do
  if left[p] > 0 and spent[p] < 0 then spent[p] = least or 0 end
end
local quota, order = {}, {}
for line = 0, 5 do quota[line] = 0 end
while #order < most do
  local best
  for p = 0, 2 do
    local some = here[p + 3] > quota[p + 3] or (calls > 0 and here[p] > quota[p])
    if some and (not best or spent[p] < spent[best]) then best = p end
  end
  if not best then break end
  local line = best
  if here[best + 3] > quota[best + 3] then line = best + 3 else calls = calls - 1 end
  quota[line] = quota[line] + 1
  spent[best] = spent[best] + COST[best]
  order[#order + 1] = line
end
local paid = {}
for p = 0, 2 do
  local idle = here[p] + here[p + 3] == quota[p] + quota[p + 3]
  paid[#paid + 1], paid[#paid + 2] = 'spent' .. p, idle and -1 or spent[p]
end
redis.call('HSET', state, unpack(paid))

local taken, claimed = {}, 0
for line = 0, lines - 1 do
  local stream, entries = of(line, 'jobs'), {}
  local back = math.min(quota[line], free[line])
  if back > 0 then
    local claim = {'XCLAIM', stream, GROUP, consumer, '0'}
    for _, pending in ipairs(redis.call('XPENDING', stream, GROUP, '-', '+', back, FREE)) do
      claim[#claim + 1] = pending[1]
    end
    entries = redis.call(unpack(claim))
  end
  if quota[line] > back then
    local read = redis.call('XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', quota[line] - back, 'STREAMS', stream, '>')
    for _, entry in ipairs(read and read[1][2] or {}) do entries[#entries + 1] = entry end
  end
  entries = ours(line, entries)
  local names, notes = {}, {}
  for _, entry in ipairs(entries) do
    names[#names + 1] = entry[1]
    notes[#notes + 1], notes[#notes + 2] = entry[2][2], leased_at(line, entry[1], consumer)
  end
  if #names > 0 then
    lease(line, names, consumer)
    redis.call('HSET', index, unpack(notes))
  end
  taken[line] = entries
  if line < 3 then claimed = claimed + #entries end
end
if claimed > 0 then redis.call('HINCRBY', state, 'claimed', claimed) end
local low = 0
for line = 0, lines - 1 do
  if is_low(here[line] - #taken[line], depth) and redis.call('ZCARD', of(line, 'due')) > 0 then low = low + 1 end
end
local answer, at = {name, tostring(low)}, {}
for _, line in ipairs(order) do
  at[line] = (at[line] or 0) + 1
  local entry = taken[line][at[line]]
  if entry then
    answer[#answer + 1] = tostring(line)
    answer[#answer + 1] = entry[1]
    answer[#answer + 1] = entry[2][2]
  end
end
return answer
